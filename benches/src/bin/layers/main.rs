//! Layers whose inputs are correlated, under every method: output error on the tokens of calibration and on fresh ones.
//!
//! ```text
//! x = s ⊙ Q (√λ ⊙ z)     z ~ N(0, I)     λ_i = i^−p     Q a random rotation     s: 1, and 10 for a few loud inputs
//! error = ‖(W − Ŵ) X‖ / ‖W X‖     W ~ N(0, 1)
//! ```
//!
//! `cargo run --release -p taper-benches --bin layers -- --rows 512` prints the table; `--json` the same as JSON.
//! `--width 4096 --time` checks and times the jobs of one whole layer.

mod methods;
mod timing;

use clap::Parser;
use rand::Rng;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use rand_distr::{Distribution, StandardNormal};
use std::time::Instant;
use taper::core::{
    Needs,
    linalg::{View, product},
    stats::Accumulator,
};

use methods::{Layer, METHODS};

/// Compares methods on synthetic correlated layers.
#[derive(Debug, Parser)]
struct Arguments {
    /// Inputs of the layer, a power of two; the four standard settings without it.
    #[arg(long)]
    width: Option<usize>,
    /// The exponent of the spectrum of the inputs.
    #[arg(long, default_value_t = 1.0)]
    spectrum: f64,
    /// Inputs that are ten times as loud.
    #[arg(long, default_value_t = 8)]
    outliers: usize,
    /// Outputs of the layer.
    #[arg(long, default_value_t = 512)]
    rows: usize,
    /// Tokens of calibration, and as many fresh ones.
    #[arg(long, default_value_t = 2048)]
    tokens: usize,
    /// Bits per code.
    #[arg(long, default_value_t = 4)]
    bits: u64,
    /// Weights per group.
    #[arg(long, default_value_t = 128)]
    group: usize,
    /// Only methods whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Instead, the seconds of each job of a square layer, four bits.
    #[arg(long, requires = "width")]
    time: bool,
    /// The seed of everything random.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// One JSON object per line instead of a table.
    #[arg(long)]
    json: bool,
}

/// What the inputs of a layer are like.
#[derive(Debug, Clone, Copy)]
struct Setting {
    width: usize,
    spectrum: f64,
    outliers: usize,
}

const STANDARD: [Setting; 4] = [
    Setting { width: 1024, spectrum: 1.0, outliers: 8 },
    Setting { width: 1024, spectrum: 0.5, outliers: 8 },
    Setting { width: 1024, spectrum: 1.0, outliers: 0 },
    Setting { width: 4096, spectrum: 1.0, outliers: 8 },
];

/// How much louder loud inputs are.
const LOUD: f32 = 10.0;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let settings = match arguments.width {
        None => STANDARD.to_vec(),
        Some(width) if width.is_power_of_two() => {
            vec![Setting { width, spectrum: arguments.spectrum, outliers: arguments.outliers }]
        }
        Some(width) => return Err(format!("`--width` is {width}; rotations want a power of two").into()),
    };
    for setting in settings {
        run(&arguments, setting)?;
    }
    Ok(())
}

fn run(arguments: &Arguments, setting: Setting) -> Result<(), Box<dyn std::error::Error>> {
    let Setting { width, spectrum, outliers } = setting;
    let mut random = ChaCha8Rng::seed_from_u64(arguments.seed);
    let inputs = Inputs::new(setting, &mut random);
    let (seen, fresh) =
        (inputs.tokens(arguments.tokens, &mut random), inputs.tokens(arguments.tokens, &mut random));
    let rows = if arguments.time { width } else { arguments.rows };
    let weights: Vec<f32> = (0..rows * width).map(|_| StandardNormal.sample(&mut random)).collect();
    if arguments.time {
        let (weights, seen, fresh) = (weights.as_slice(), seen.as_slice(), fresh.as_slice());
        return timing::Job { width, group: arguments.group, weights, seen, fresh }.run();
    }
    let mut sums = Accumulator::new(width, Needs::Gram);
    sums.add("layer", &seen)?;
    let stats = sums.finish("layer")?;
    let layer = Layer {
        weights: &weights,
        shape: [arguments.rows, width],
        stats: &stats,
        bits: arguments.bits,
        group: arguments.group,
    };
    let energy = [output_energy(&weights, &seen, width), output_energy(&weights, &fresh, width)];
    if !arguments.json {
        println!(
            "\n### width {width}, spectrum i^-{spectrum}, {outliers} loud inputs, {} rows\n",
            arguments.rows
        );
        println!("| method | calibration | held out | shrinkage | seconds |\n|---|---|---|---|---|");
    }
    for (name, method) in METHODS.iter().filter(|(name, _)| name.contains(&arguments.only)) {
        let start = Instant::now();
        let done = method(&layer)?;
        let seconds = start.elapsed().as_secs_f64();
        let error: Vec<f32> = weights.iter().zip(&done.values).map(|(w, v)| w - v).collect();
        let of = |tokens: &[f32], energy: f64| (output_energy(&error, tokens, width) / energy).sqrt();
        let (calibration, held_out) = (of(&seen, energy[0]), of(&fresh, energy[1]));
        if arguments.json {
            let line = serde_json::json!({
                "method": name, "width": width, "spectrum": spectrum, "outliers": outliers,
                "bits": arguments.bits, "group": arguments.group, "rows": arguments.rows,
                "calibration": calibration, "held-out": held_out, "shrinkage": done.shrinkage, "seconds": seconds,
            });
            println!("{line}");
        } else {
            let shrinkage = done.shrinkage.map_or("".to_owned(), |a| format!("{a:.3}"));
            println!("| {name} | {calibration:.4} | {held_out:.4} | {shrinkage} | {seconds:.3} |");
        }
    }
    Ok(())
}

/// ‖E X‖².
fn output_energy(error: &[f32], tokens: &[f32], width: usize) -> f64 {
    let count = tokens.len() / width;
    let mut sum = 0.0;
    for error in error.chunks(64 * width) {
        let m = error.len() / width;
        let mut out = vec![0f32; m * count];
        let (left, right) = (View::rows(error, width), View::columns(tokens, width));
        product(&mut out, count, (m, count, width), (0.0, 1.0), left, right);
        sum += out.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>();
    }
    sum
}

/// The distribution of the inputs.
struct Inputs {
    roots: Vec<f32>,
    signs: [Vec<f32>; 3],
    scales: Vec<f32>,
}

impl Inputs {
    fn new(setting: Setting, random: &mut ChaCha8Rng) -> Self {
        let d = setting.width;
        let mut scales = vec![1f32; d];
        let mut loud = 0;
        while loud < setting.outliers.min(d) {
            let i = random.random_range(0..d);
            if scales[i] == 1.0 {
                scales[i] = LOUD;
                loud += 1;
            }
        }
        let mut signs = || (0..d).map(|_| if random.random::<bool>() { 1.0 } else { -1.0 }).collect();
        Self {
            roots: (1..=d).map(|i| (i as f64).powf(-setting.spectrum / 2.0) as f32).collect(),
            signs: [signs(), signs(), signs()],
            scales,
        }
    }

    /// `[count, width]`.
    fn tokens(&self, count: usize, random: &mut ChaCha8Rng) -> Vec<f32> {
        let d = self.roots.len();
        let mut all = Vec::with_capacity(count * d);
        for _ in 0..count {
            let mut x: Vec<f32> = self
                .roots
                .iter()
                .map(|r| {
                    let z: f32 = StandardNormal.sample(random);
                    r * z
                })
                .collect();
            // Three rounds of random signs and a Hadamard transform are as good as a random rotation.
            for signs in &self.signs {
                x.iter_mut().zip(signs).for_each(|(x, s)| *x *= s);
                hadamard(&mut x);
            }
            all.extend(x.iter().zip(&self.scales).map(|(x, s)| x * s));
        }
        all
    }
}

/// The orthonormal Walsh–Hadamard transform, in place.
fn hadamard(x: &mut [f32]) {
    let d = x.len();
    let mut half = 1;
    while half < d {
        for pair in x.chunks_exact_mut(2 * half) {
            let (a, b) = pair.split_at_mut(half);
            for (a, b) in a.iter_mut().zip(b) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
    let norm = 1.0 / (d as f32).sqrt();
    x.iter_mut().for_each(|x| *x *= norm);
}
