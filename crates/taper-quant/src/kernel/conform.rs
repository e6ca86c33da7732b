//! Every table against the specification, and products against plain sums in f64.
//!
//! ```text
//! codes, rounded activations, integer sums    equal
//! decoded weights                             equal
//! products                                    within (columns + 8) · 2⁻²⁴ · Σ |w x| of the sum in f64
//! ```

use half::{bf16, f16};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};

use super::{
    ActivationScale, Arithmetic, Kernels, Levels, Stream, available,
    matrix::{FillScales, Grids, Matrix, ScaleSource},
    scalar,
    tiles::{LONGEST, Tiles},
};
use crate::code::nf4::TABLE as NF4;

/// A matrix with everything that it borrows.
#[derive(Debug, Clone)]
struct Case {
    rows: usize,
    cols: usize,
    span: usize,
    stream: Stream,
    table: bool,
    reordered: bool,
    tokens: usize,
    /// How scales are stored: f16, bf16, f32, computed.
    source: u8,
    zeros: bool,
    seed: u64,
}

struct Filled {
    case: Case,
    groups: usize,
    row_bytes: usize,
    codes: Vec<u8>,
    scales: Vec<f32>,
    halves: Vec<f16>,
    brains: Vec<bf16>,
    zeros: Option<Vec<i8>>,
    columns: Vec<u32>,
    x: Vec<f32>,
}

impl Case {
    fn fill(&self) -> Filled {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(self.seed);
        let groups = self.cols.div_ceil(self.span);
        let row_bytes = (self.cols * self.stream.bits()).div_ceil(8);
        let half = 1i32 << (self.stream.bits() - 1);
        let scales: Vec<f32> = (0..self.rows * groups).map(|_| rng.random_range(-1.0..1.0)).collect();
        let halves: Vec<f16> = scales.iter().map(|s| f16::from_f32(*s)).collect();
        let brains: Vec<bf16> = scales.iter().map(|s| bf16::from_f32(*s)).collect();
        let zeros = |_| rng.random_range(-half..half) as i8;
        let zeros = (self.zeros && !self.table).then(|| (0..self.rows * groups).map(zeros).collect());
        Filled {
            case: self.clone(),
            groups,
            row_bytes,
            scales: match self.source {
                0 => halves.iter().map(|s| s.to_f32()).collect(),
                1 => brains.iter().map(|s| s.to_f32()).collect(),
                _ => scales,
            },
            halves,
            brains,
            zeros,
            codes: (0..self.rows * row_bytes).map(|_| rng.random()).collect(),
            columns: (0..self.cols).map(|_| rng.random_range(0..groups as u32)).collect(),
            x: (0..self.tokens * self.cols).map(|_| rng.random_range(-3.0..3.0)).collect(),
        }
    }
}

impl Filled {
    fn offset(&self) -> i16 {
        1 << (self.case.stream.bits() - 1)
    }

    fn with<T>(&self, use_it: impl FnOnce(&Matrix<'_>) -> T) -> T {
        let groups = self.groups;
        let scales = self.scales.clone();
        let each: FillScales = std::sync::Arc::new(move |row, out| {
            out.copy_from_slice(&scales[row * groups..(row + 1) * groups]);
        });
        let grids = Grids {
            scales: match self.case.source {
                0 => ScaleSource::F16(&self.halves),
                1 => ScaleSource::BF16(&self.brains),
                2 => ScaleSource::F32(&self.scales),
                _ => ScaleSource::Each(&each),
            },
            shared: false,
            offset: if self.case.table { 0 } else { self.offset() },
            zeros: self.zeros.as_deref(),
        };
        use_it(&Matrix {
            rows: self.case.rows,
            cols: self.case.cols,
            codes: &self.codes,
            row_bytes: self.row_bytes,
            stream: self.case.stream,
            levels: if self.case.table { Levels::Table(&NF4) } else { Levels::Integers },
            span: self.case.span,
            column_groups: self.case.reordered.then_some(&self.columns[..]),
            groups,
            grids,
        })
    }

    /// A code, bit by bit.
    fn code(&self, row: usize, column: usize) -> u8 {
        let bytes = &self.codes[row * self.row_bytes..(row + 1) * self.row_bytes];
        match self.case.stream {
            Stream::Signed => bytes[column] ^ 0x80,
            Stream::High => bytes[column / 2] >> (4 * (1 - column % 2)) & 15,
            Stream::Low(bits) => (0..bits).fold(0, |code, j| {
                let at = column * bits + j;
                code | (bytes[at / 8] >> (at % 8) & 1) << j
            }),
        }
    }

    fn group(&self, column: usize) -> usize {
        if self.case.reordered { self.columns[column] as usize } else { column / self.case.span }
    }

    fn center(&self, at: usize) -> f32 {
        f32::from(self.offset()) + self.zeros.as_ref().map_or(0.0, |zeros| f32::from(zeros[at]))
    }

    /// Level before the scale, and the scale.
    fn level(&self, row: usize, column: usize) -> (f32, f32) {
        let at = row * self.groups + self.group(column);
        let code = self.code(row, column);
        let level = if self.case.table { NF4[usize::from(code)] } else { f32::from(code) - self.center(at) };
        (level, self.scales[at])
    }

    /// Sum and sum of absolute values, of decoded weights times `x`.
    fn sums(&self, row: usize, x: impl Fn(usize) -> f64) -> (f64, f64) {
        (0..self.case.cols).fold((0.0, 0.0), |(sum, size), column| {
            let (level, scale) = self.level(row, column);
            let term = f64::from(level) * f64::from(scale) * x(column);
            (sum + term, size + term.abs())
        })
    }

    fn bound(&self, size: f64) -> f64 {
        (self.case.cols as f64 + 8.0) * 2f64.powi(-24) * size + 1e-30
    }
}

fn tables() -> Vec<&'static Kernels> {
    available().into_iter().filter_map(super::table).collect()
}

fn product_of(arithmetic: Arithmetic, kernels: &Kernels, w: &Tiles, x: &[f32], tokens: usize) -> Vec<f32> {
    arithmetic.product(ActivationScale::Dynamic, (kernels, w), x, tokens)
}

fn check(case: &Case) {
    let filled = case.fill();
    for kernels in tables() {
        filled.with(|w| {
            let tiles = Tiles::new(kernels, w);
            check_rows(kernels, &filled, w, &tiles);
            check_exact(kernels, &filled, &tiles);
            check_bf16(kernels, &filled, &tiles);
            check_int8(kernels, &filled, &tiles);
        });
    }
}

/// Codes and decoded rows are equal to the last bit, and tiles say the same.
fn check_rows(kernels: &Kernels, filled: &Filled, w: &Matrix<'_>, tiles: &Tiles) {
    let case = &filled.case;
    for row in 0..case.rows {
        let mut codes = vec![0xaa; case.cols + 9];
        w.unpack(kernels, row, 0, &mut codes[..case.cols]);
        let want: Vec<u8> = (0..case.cols).map(|column| filled.code(row, column)).collect();
        assert_eq!(codes[..case.cols], want, "{} codes of {case:?}", kernels.isa);
        assert!(codes[case.cols..].iter().all(|c| *c == 0xaa), "{} wrote beyond the row", kernels.isa);
        tiles.codes_of_row(row, &mut codes[..case.cols]);
        assert_eq!(codes[..case.cols], want, "{} tiled codes of {case:?}", kernels.isa);
        let (mut values, mut tiled) = (vec![0f32; case.cols], vec![0f32; case.cols]);
        w.decode_rows(kernels, row, &mut values);
        tiles.decode_row(kernels, row, &mut tiled);
        for (column, value) in values.iter().enumerate() {
            let (level, scale) = filled.level(row, column);
            assert_eq!(*value, level * scale, "{} value {column} of {case:?}", kernels.isa);
        }
        assert_eq!(values, tiled, "{} tiled row of {case:?}", kernels.isa);
        for g in 0..filled.groups {
            assert_eq!(tiles.scale(row, g), filled.scales[row * filled.groups + g]);
            let zero = filled.zeros.as_ref().map_or(0, |zeros| zeros[row * filled.groups + g]);
            assert_eq!(tiles.zero(row, g), zero);
        }
    }
}

/// Every output of a product, against sums in f64 of what `x` gives for a token and a column.
fn compare(kernels: &Kernels, filled: &Filled, y: &[f32], more: f64, x: impl Fn(usize, usize) -> f64) {
    let case = &filled.case;
    assert_eq!(y.len(), case.tokens * case.rows);
    for (token, y) in y.chunks_exact(case.rows).enumerate() {
        for (row, y) in y.iter().enumerate() {
            let (want, size) = filled.sums(row, |column| x(token, column));
            let (off, bound) = ((f64::from(*y) - want).abs(), filled.bound(size) + more * size);
            assert!(off <= bound, "{} [{token}, {row}] {y} not {want}: {case:?}", kernels.isa);
        }
    }
}

fn check_exact(kernels: &Kernels, filled: &Filled, tiles: &Tiles) {
    let y = product_of(Arithmetic::Exact, kernels, tiles, &filled.x, filled.case.tokens);
    let cols = filled.case.cols;
    compare(kernels, filled, &y, 0.0, |token, column| f64::from(filled.x[token * cols + column]));
}

/// The product is that of activations rounded to bf16; a table of levels is rounded as well.
fn check_bf16(kernels: &Kernels, filled: &Filled, tiles: &Tiles) {
    let y = product_of(Arithmetic::Bf16, kernels, tiles, &filled.x, filled.case.tokens);
    let cols = filled.case.cols;
    let levels = if filled.case.table { 2f64.powi(-8) } else { 0.0 };
    compare(kernels, filled, &y, levels, |token, column| {
        bf16::from_f32(filled.x[token * cols + column]).to_f64()
    });
}

/// The product is that of the rounded activations; the rounding itself is the specification's.
fn check_int8(kernels: &Kernels, filled: &Filled, tiles: &Tiles) {
    let case = &filled.case;
    let y = product_of(Arithmetic::Int8, kernels, tiles, &filled.x, case.tokens);
    let mut rounded = vec![0f64; filled.x.len()];
    for (x, rounded) in filled.x.chunks_exact(case.cols).zip(rounded.chunks_exact_mut(case.cols)) {
        for segment in &tiles.segments {
            let columns: Vec<usize> = (segment.start..segment.start + segment.len)
                .map(|at| tiles.order.as_ref().map_or(at, |order| order[at] as usize))
                .collect();
            let x: Vec<f32> = columns.iter().map(|column| x[*column]).collect();
            let (mut bytes, mut own) = (vec![0i8; x.len()], vec![0i8; x.len()]);
            let step = (scalar::TABLE.quantize)(&x, &mut bytes);
            assert_eq!((step, &bytes), ((kernels.quantize)(&x, &mut own), &own), "{} rounding", kernels.isa);
            for (column, byte) in columns.into_iter().zip(bytes) {
                rounded[column] = f64::from(byte) * f64::from(step);
            }
        }
    }
    // A table of levels becomes bytes: 1/254 of the largest level, against levels as small as they come.
    let size = |row, token: usize| {
        let (_, size) = filled.sums(row, |_| 1.0);
        let peak = rounded[token * case.cols..][..case.cols].iter().fold(0f64, |peak, x| peak.max(x.abs()));
        size * peak
    };
    if !case.table {
        return compare(kernels, filled, &y, 0.0, |token, column| rounded[token * case.cols + column]);
    }
    for (token, y) in y.chunks_exact(case.rows).enumerate() {
        for (row, y) in y.iter().enumerate() {
            let scales = filled.scales[row * filled.groups..][..filled.groups].iter();
            let peak: f64 = scales.map(|s| f64::from(s.abs())).fold(0.0, f64::max);
            let (want, _) = filled.sums(row, |column| rounded[token * case.cols + column]);
            let x = &rounded[token * case.cols..][..case.cols];
            let most = peak * x.iter().map(|x| x.abs()).sum::<f64>() / 250.0 + filled.bound(size(row, token));
            let off = (f64::from(*y) - want).abs();
            assert!(off <= most, "{} [{token}, {row}] {y} not {want}, {most}: {case:?}", kernels.isa);
        }
    }
}

fn streams() -> impl Strategy<Value = (Stream, bool)> {
    prop_oneof![
        (2usize..=8).prop_map(|bits| (Stream::Low(bits), false)),
        Just((Stream::Low(4), false)),
        Just((Stream::Signed, false)),
        Just((Stream::High, true)),
        Just((Stream::Low(4), true)),
        Just((Stream::Low(2), true)),
    ]
}

fn spans(cols: usize) -> impl Strategy<Value = usize> {
    prop_oneof![Just(8), Just(16), Just(32), Just(64), Just(128), Just(256), Just(cols), 1usize..=cols + 3]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_table_agrees_with_plain_sums(
        (cols, span) in (1usize..700).prop_flat_map(|cols| (Just(cols), spans(cols))),
        (stream, table) in streams(),
        rows in 1usize..70,
        tokens in prop_oneof![1usize..5, 1usize..71],
        reordered in prop::bool::weighted(0.1),
        (source, zeros) in (0u8..4, any::<bool>()),
        seed in any::<u64>(),
    ) {
        // Rows of `High` begin at whole bytes.
        let cols = if stream == Stream::High { cols.next_multiple_of(2) } else { cols };
        let span = span.min(cols);
        // Only integers come with reordered columns.
        let reordered = reordered && !table;
        check(&Case { rows, cols, span, stream, table, reordered, tokens, source, zeros, seed });
    }
}

#[test]
fn shapes_of_real_layers_agree() {
    for (cols, span) in [(1024, 128), (1024, 32), (1152, 1152), (2304, 64), (40_000, 40_000)] {
        for stream in [Stream::Low(4), Stream::Low(8), Stream::Signed, Stream::Low(3)] {
            for tokens in [1, 2, 5, 13] {
                let rows = if cols > 4096 { 9 } else { 40 };
                check_wide(&Case {
                    rows,
                    cols,
                    span,
                    stream,
                    table: false,
                    reordered: false,
                    tokens,
                    source: 0,
                    zeros: rows == 40,
                    seed: 7,
                });
            }
        }
    }
}

/// As [`check`], where groups may be longer than an integer sum: it is cut then, and steps are finer.
fn check_wide(case: &Case) {
    let filled = case.fill();
    for kernels in tables() {
        filled.with(|w| {
            let tiles = Tiles::new(kernels, w);
            assert!(tiles.segments.iter().all(|segment| segment.len <= LONGEST));
            check_exact(kernels, &filled, &tiles);
            check_bf16(kernels, &filled, &tiles);
            check_int8(kernels, &filled, &tiles);
        });
    }
}

#[test]
fn results_do_not_depend_on_threads() {
    let case = Case {
        rows: 700,
        cols: 600,
        span: 128,
        stream: Stream::Low(4),
        table: false,
        reordered: false,
        tokens: 1,
        source: 0,
        zeros: true,
        seed: 3,
    };
    for tokens in [1, 3, 20] {
        let filled = Case { tokens, ..case.clone() }.fill();
        for kernels in tables() {
            let run = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| {
                    filled.with(|w| {
                        let tiles = Tiles::new(kernels, w);
                        [Arithmetic::Exact, Arithmetic::Bf16, Arithmetic::Int8]
                            .map(|arithmetic| product_of(arithmetic, kernels, &tiles, &filled.x, tokens))
                    })
                })
            };
            let alone = run(1);
            for threads in [2, 3, 7] {
                assert_eq!(run(threads), alone, "{} on {threads} threads", kernels.isa);
            }
        }
    }
}

#[test]
fn activations_that_are_not_finite_show_in_the_result() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for tokens in [1, 6] {
            let case = Case {
                rows: 5,
                cols: 96,
                span: 32,
                stream: Stream::Low(4),
                table: false,
                reordered: false,
                tokens,
                source: 2,
                zeros: false,
                seed: 5,
            };
            let mut filled = case.fill();
            filled.x[40] = bad;
            for kernels in tables() {
                let product = |w: &Matrix<'_>| {
                    product_of(Arithmetic::Int8, kernels, &Tiles::new(kernels, w), &filled.x, tokens)
                };
                let y = filled.with(product);
                assert!(y[..5].iter().all(|y| y.is_nan()), "{} hides {bad}", kernels.isa);
                assert!(y[5..].iter().all(|y| y.is_finite()), "{} spreads {bad}", kernels.isa);
            }
        }
    }
}

#[test]
fn groups_of_zeros_and_of_tiny_activations_are_zero() {
    for kernels in tables() {
        let mut out = [1i8; 5];
        assert_eq!((kernels.quantize)(&[0.0, -0.0, 0.0, 0.0, 0.0], &mut out), 0.0);
        assert_eq!(out, [0; 5]);
        assert_eq!((kernels.quantize)(&[1e-40, -1e-39, 0.0, 0.0, 0.0], &mut out), 0.0);
        let step = (kernels.quantize)(&[254.0, -254.0, 1.0, 3.0, -1.0], &mut out);
        assert_eq!((step, out), (2.0, [127, -127, 0, 2, 0]));
    }
}

#[test]
fn every_instruction_set_has_a_table() {
    for isa in available() {
        assert_eq!(super::table(isa).map(|kernels| kernels.isa), Some(isa));
    }
    assert_eq!(Arithmetic::default(), Arithmetic::Exact);
}

#[test]
fn a_static_scale_rounds_and_clips_as_it_says() {
    let case = Case {
        rows: 21,
        cols: 96,
        span: 96,
        stream: Stream::Signed,
        table: false,
        reordered: false,
        tokens: 3,
        source: 2,
        zeros: false,
        seed: 9,
    };
    let filled = case.fill();
    let scale = 0.02f32;
    for kernels in tables() {
        filled.with(|w| {
            let tiles = Tiles::new(kernels, w);
            let y = Arithmetic::Int8.product(ActivationScale::Static(scale), (kernels, &tiles), &filled.x, 3);
            compare(kernels, &filled, &y, 0.0, |token, column| {
                let x = f64::from(filled.x[token * 96 + column] / scale);
                f64::from(scale) * x.round_ties_even().clamp(-127.0, 127.0)
            });
        });
    }
}

#[test]
fn tiles_take_hardly_more_than_the_rows() {
    for (bits, span, source) in [(4, 128, 0), (4, 32, 0), (8, 1024, 2), (3, 128, 0), (2, 64, 1), (6, 64, 0)] {
        let case = Case {
            rows: 64,
            cols: 1024,
            span,
            stream: Stream::Low(bits),
            table: false,
            reordered: false,
            tokens: 1,
            source,
            zeros: true,
            seed: 1,
        };
        let filled = case.fill();
        filled.with(|w| {
            let scales = if source == 2 { 4 } else { 2 };
            let rows = filled.codes.len() + filled.scales.len() * (scales + 1);
            let tiles = Tiles::new(&scalar::TABLE, w).nbytes();
            assert!(tiles * 100 <= rows * 105, "{bits} bits: {tiles} bytes of tiles, {rows} of rows");
        });
    }
}
