//! The published vectors of every format, both ways: through the codec to bytes, and from bytes to values.

use safetensors::Dtype;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use taper_core::{Encoding, Part, Parts, Weight, weight::to_f32_vec};
use taper_quant::{
    Bits, Fit, Granularity, IntLayout, Nf4Scheme, PackedInt, PackedNf4, ScaleType, Scheme, code::nf4::TABLE,
    codecs,
};

fn words(parts: &Parts, role: &str) -> Vec<u32> {
    parts.tensors[role].values::<u32>()
}

fn scheme(bits: u64, granularity: Granularity) -> Scheme {
    Scheme::new(Bits::new(bits).unwrap(), granularity).with_scales(ScaleType::F32)
}

fn part<T: bytemuck::NoUninit>(dtype: Dtype, shape: &[usize], values: &[T]) -> Part {
    Part::from_values(dtype, shape.to_vec(), values)
}

fn parts(codec: &str, shape: &[usize], attributes: Value, tensors: Vec<(&str, Part)>) -> Parts {
    let Value::Object(attributes) = attributes else { panic!("attributes are an object") };
    Parts {
        encoding: Encoding::new(codec.to_owned(), "test"),
        shape: shape.to_vec(),
        attributes,
        tensors: tensors.into_iter().map(|(r, p)| (r.to_owned(), p)).collect::<BTreeMap<_, _>>(),
    }
}

fn read(parts: Parts) -> taper_core::Result<taper_core::SharedWeight> {
    let codecs = codecs();
    codecs.get(&parts.encoding.codec.clone()).unwrap().read("a.weight", parts)
}

/// One row of codes, stored as `pack-quantized` with scale 1.
fn packed_row(bits: u64, codes: &[i32], file: &[u32]) {
    let cols = codes.len();
    let attributes = json!({ "bits": bits, "symmetric": true, "granularity": "channel" });
    let stored = parts(
        "pack-quantized",
        &[1, cols],
        attributes,
        vec![
            ("codes", part(Dtype::I32, &[1, file.len()], file)),
            ("scale", part(Dtype::F32, &[1, 1], &[1f32])),
            ("shape", part(Dtype::I64, &[2], &[1i64, cols as i64])),
        ],
    );
    let weight = read(stored).unwrap();
    let expected: Vec<f32> = codes.iter().map(|&q| q as f32).collect();
    assert_eq!(to_f32_vec(weight.as_ref()).unwrap(), expected, "{bits} bits");
    // What was read is written in the dense layout, whatever layout it came in.
    let values: Vec<f32> = codes.iter().map(|&q| q as f32 * 0.5).collect();
    let encoded = PackedInt::encode(
        &values,
        &[1, cols],
        &scheme(bits, Granularity::Channel),
        &Fit::default(),
        None,
        IntLayout::PackQuantized,
    )
    .unwrap();
    assert_eq!(to_f32_vec(&encoded).unwrap(), values, "{bits} bits: exact values have an exact scale");
    assert_eq!(words(&encoded.to_parts().unwrap(), "codes"), words(&weight.to_parts().unwrap(), "codes"));
}

#[test]
fn pack_quantized_vectors() {
    packed_row(4, &(-8..0).collect::<Vec<_>>(), &[0x7654_3210]);
    packed_row(4, &[7, -8, 0, 1, -1, 3, -4, 5], &[0xd4b7_980f]);
    packed_row(2, &(0..16).map(|i| i % 4 - 2).collect::<Vec<_>>(), &[0xe4e4_e4e4]);
    let three: Vec<i32> = (0..32).map(|i| i % 8 - 4).collect();
    packed_row(3, &three, &[0x88fa_c688, 0xc688_fac6, 0xfac6_88fa]);
    let five: Vec<i32> = (0..32).map(|i| i % 32 - 16).collect();
    packed_row(5, &five, &[0x8a41_8820, 0xc5a9_2839, 0xca30_7b9a, 0x38bd_ab49, 0xffbb_cdeb]);
    let six: Vec<i32> = (0..32).map(|i| (2 * i) % 64 - 32).collect();
    let file = [0x8818_4080, 0x4490_38c2, 0x79c6_9859, 0xa89a_48a0, 0x4cb0_baca, 0xfbce_b8db];
    packed_row(6, &six, &file);
}

#[test]
fn the_old_three_bit_layout_is_read_and_rewritten_densely() {
    let three: Vec<i32> = (0..32).map(|i| i % 8 - 4).collect();
    packed_row(3, &three, &[0x8fa_c688, 0x1a23_eb1a, 0x2c68_8fac, 0x3e]);
    // Five bits, six codes per word.
    let five: Vec<i32> = (0..32).map(|i| i % 32 - 16).collect();
    let mut old = vec![0u32; 6];
    for (i, q) in five.iter().enumerate() {
        old[i / 6] |= ((q + 16) as u32) << (5 * (i % 6));
    }
    packed_row(5, &five, &old);
}

#[test]
fn old_zero_points_share_the_old_layout() {
    let (rows, cols, groups) = (11usize, 32usize, 2usize);
    let zero = |r: usize, g: usize| (r as i32 * 3 + g as i32 * 2) % 8 - 4;
    let codes: Vec<u32> = (0..rows).flat_map(|_| [0x8fa_c688u32, 0x1a23_eb1a, 0x2c68_8fac, 0x3e]).collect();
    let mut zeros = vec![0u32; 2 * groups];
    for r in 0..rows {
        for g in 0..groups {
            zeros[r / 10 * groups + g] |= ((zero(r, g) + 4) as u32) << (3 * (r % 10));
        }
    }
    let attributes = json!({ "bits": 3, "symmetric": false, "granularity": "group", "group": 16 });
    let stored = parts(
        "pack-quantized",
        &[rows, cols],
        attributes,
        vec![
            ("codes", part(Dtype::I32, &[rows, 4], &codes)),
            ("scale", part(Dtype::F32, &[rows, groups], &vec![1f32; rows * groups])),
            ("zero", part(Dtype::I32, &[2, groups], &zeros)),
            ("shape", part(Dtype::I64, &[2], &[rows as i64, cols as i64])),
        ],
    );
    let weight = read(stored).unwrap();
    let values = to_f32_vec(weight.as_ref()).unwrap();
    for r in 0..rows {
        for c in 0..cols {
            let expected = (c as i32 % 8 - 4 - zero(r, c / 16)) as f32;
            assert_eq!(values[r * cols + c], expected, "{r}, {c}");
        }
    }
    let again = read(weight.to_parts().unwrap()).unwrap();
    assert_eq!(to_f32_vec(again.as_ref()).unwrap(), values);
}

#[test]
fn zero_points_are_packed_along_rows() {
    let (rows, cols) = (11usize, 8usize);
    let values: Vec<f32> = (0..rows * cols).map(|i| ((i * 29) % 31) as f32 / 3.0 - i as f32 * 0.05).collect();
    let scheme = scheme(4, Granularity::group(4).unwrap()).asymmetric();
    let encoded =
        PackedInt::encode(&values, &[rows, cols], &scheme, &Fit::MinMax, None, IntLayout::PackQuantized)
            .unwrap();
    let parts = encoded.to_parts().unwrap();
    assert_eq!((parts.tensors["zero"].dtype, &parts.tensors["zero"].shape[..]), (Dtype::I32, &[2, 2][..]));
    let zeros = words(&parts, "zero");
    for row in 0..rows {
        for group in 0..2 {
            let field = zeros[row / 8 * 2 + group] >> (4 * (row % 8)) & 15;
            assert_eq!(field as i32 - 8, encoded.grid(row, group).zero);
            // The rule of compressed-tensors, restated: the range contains 0.
            let x = &values[row * cols + group * 4..][..4];
            let (low, high) = x.iter().fold((0f32, 0f32), |(l, h), &x| (l.min(x), h.max(x)));
            let scale = (high - low) / 15.0;
            assert_eq!(encoded.grid(row, group).scale, scale);
            assert_eq!(
                encoded.grid(row, group).zero as f32,
                (-8.0 - low / scale).round_ties_even().clamp(-8.0, 7.0)
            );
        }
    }
    // One zero point for the whole tensor stays a byte.
    let scheme = scheme.with_granularity(Granularity::Tensor);
    let whole =
        PackedInt::encode(&values, &[rows, cols], &scheme, &Fit::MinMax, None, IntLayout::PackQuantized)
            .unwrap();
    let part = &whole.to_parts().unwrap().tensors["zero"];
    assert_eq!((part.dtype, &part.shape[..]), (Dtype::I8, &[1][..]));
}

#[test]
fn reordered_columns_are_read_and_kept() {
    let index: Vec<i32> = (0..8).map(|i| i % 2).collect();
    let attributes = json!({ "bits": 4, "symmetric": true, "granularity": "group", "group": 4 });
    let make = |index: &[i32]| {
        parts(
            "pack-quantized",
            &[1, 8],
            attributes.clone(),
            vec![
                ("codes", part(Dtype::I32, &[1, 1], &[0x7654_3210u32])),
                ("scale", part(Dtype::F32, &[1, 2], &[1f32, 10.0])),
                ("shape", part(Dtype::I64, &[2], &[1i64, 8])),
                ("group-index", part(Dtype::I32, &[8], index)),
            ],
        )
    };
    let weight = read(make(&index)).unwrap();
    let expected = [-8.0, -70.0, -6.0, -50.0, -4.0, -30.0, -2.0, -10.0];
    assert_eq!(to_f32_vec(weight.as_ref()).unwrap(), expected);
    let saved = weight.to_parts().unwrap();
    assert_eq!(saved.tensors["group-index"].values::<i32>(), index);
    assert_eq!(saved.nbytes(), weight.nbytes());
    let unused = read(make(&[-1; 8])).unwrap();
    assert_eq!(to_f32_vec(unused.as_ref()).unwrap(), [-8., -7., -6., -5., -40., -30., -20., -10.]);
    let error = read(make(&[0, 0, 0, 0, 1, 1, 1, 2])).unwrap_err().to_string();
    assert!(error.contains("outside 0 to 1"), "{error}");
}

#[test]
fn int_quantized_is_one_signed_byte_per_code() {
    let values: Vec<f32> = (-4..4).map(|i| i as f32).collect();
    let scheme = scheme(8, Granularity::Channel);
    let encoded =
        PackedInt::encode(&values, &[2, 4], &scheme, &Fit::MinMax, None, IntLayout::IntQuantized).unwrap();
    let parts = encoded.to_parts().unwrap();
    assert_eq!((parts.tensors["codes"].dtype, &parts.tensors["codes"].shape[..]), (Dtype::I8, &[2, 4][..]));
    // Row 0: scale 4/127.5 in f32, by which −4 is just above −127.5; −95.6 rounds to −96, …
    assert_eq!(parts.tensors["codes"].values::<i8>(), [-127, -96, -64, -32, 0, 42, 85, 127]);
    assert_eq!(parts.tensors["scale"].values::<f32>(), [4.0 / 127.5, 3.0 / 127.5]);
    let names = |role: &str| codecs().get("int-quantized").unwrap().part_name("a.weight", role);
    assert_eq!([names("codes"), names("scale")], ["a.weight", "a.weight_scale"]);
    assert_eq!(to_f32_vec(read(parts).unwrap().as_ref()).unwrap(), to_f32_vec(&encoded).unwrap());
}

#[test]
fn bitsandbytes_int8_stores_row_maxima() {
    let values = [0.5f32, -2.0, 1.0, 0.25, 0.0, 0.0, 0.0, 0.0, 3.0, 1.5, -0.1, 0.7];
    let scheme = scheme(8, Granularity::Channel);
    let encoded =
        PackedInt::encode(&values, &[3, 4], &scheme, &Fit::AbsMax, None, IntLayout::BitsAndBytes).unwrap();
    let parts = encoded.to_parts().unwrap();
    assert_eq!(parts.tensors["scale"].values::<f32>(), [2.0, 0.0, 3.0]);
    // round(127 · x / max)
    assert_eq!(parts.tensors["codes"].values::<i8>(), [32, -127, 64, 16, 0, 0, 0, 0, 127, 64, -4, 30]);
    assert_eq!((parts.tensors["order"].dtype, parts.tensors["order"].data.to_vec()), (Dtype::U8, vec![0]));
    let codecs = codecs();
    let names = |role: &str| codecs.get("bitsandbytes-int8").unwrap().part_name("a.weight", role);
    assert_eq!([names("codes"), names("scale"), names("order")], ["a.weight", "a.SCB", "a.weight_format"]);
    let decoded = to_f32_vec(&encoded).unwrap();
    for (i, (x, q)) in decoded.iter().zip(parts.tensors["codes"].values::<i8>()).enumerate() {
        let exact = f64::from(q) * [2.0, 0.0, 3.0][i / 4] / 127.0;
        assert!((f64::from(*x) - exact).abs() <= 2e-7 * exact.abs());
    }
}

#[test]
fn nf4_vectors() {
    let w: Vec<f32> = (0..64).map(|i| (i as f32 - 32.0) / 16.0).collect();
    let encoded =
        PackedNf4::encode(&w, &[4, 16], Nf4Scheme::new(64).unwrap(), &Fit::AbsMax, None, Default::default())
            .unwrap();
    let parts = encoded.to_parts().unwrap();
    let hex: String = parts.tensors["codes"].data.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex, "000001111111122222333344455566677788999aaabbbccccddddeeeeeeeffff");
    assert_eq!((parts.tensors["codes"].dtype, &parts.tensors["codes"].shape[..]), (Dtype::U8, &[32, 1][..]));
    assert_eq!(parts.tensors["absmax"].values::<f32>(), [2.0]);
    assert_eq!(parts.tensors["table"].values::<f32>(), TABLE);
    let state: Map<String, Value> = serde_json::from_slice(&parts.tensors["state"].data).unwrap();
    let expected = json!({ "quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [4, 16] });
    assert_eq!(Value::Object(state), expected);
    let codecs = codecs();
    let names: Vec<String> = parts
        .tensors
        .keys()
        .map(|role| codecs.get("bitsandbytes-nf4").unwrap().part_name("x.weight", role))
        .collect();
    let state = "x.weight.quant_state.bitsandbytes__nf4";
    assert_eq!(names, ["x.weight.absmax", "x.weight", state, "x.weight.quant_map"]);
    let decoded = to_f32_vec(read(parts).unwrap().as_ref()).unwrap();
    assert_eq!((decoded[0], decoded[32], decoded[63]), (-2.0, 0.0, 2.0));
}

#[test]
fn doubly_quantized_scales_follow_the_published_formula() {
    let w: Vec<f32> = (0..300 * 8).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
    let scheme = Nf4Scheme::new(8).unwrap().double_quant();
    let encoded = PackedNf4::encode(&w, &[300, 8], scheme, &Fit::AbsMax, None, Default::default()).unwrap();
    let parts = encoded.to_parts().unwrap();
    let bytes = parts.tensors["absmax"].values::<u8>();
    let nested = parts.tensors["nested-absmax"].values::<f32>();
    let map = parts.tensors["nested-map"].values::<f32>();
    let state: Value = serde_json::from_slice(&parts.tensors["state"].data).unwrap();
    assert_eq!((bytes.len(), nested.len(), map.len()), (300, 2, 256));
    assert_eq!((&state["nested_blocksize"], &state["nested_dtype"]), (&json!(256), &json!("float32")));
    let offset = state["nested_offset"].as_f64().unwrap() as f32;
    let decoded = to_f32_vec(read(parts.clone()).unwrap().as_ref()).unwrap();
    for (i, x) in decoded.iter().enumerate() {
        let absmax = map[usize::from(bytes[i / 8])] * nested[i / 8 / 256] + offset;
        let byte = parts.tensors["codes"].data[i / 2];
        let code = if i % 2 == 0 { byte >> 4 } else { byte & 15 };
        assert_eq!(*x, TABLE[usize::from(code)] * absmax);
        // Scales are nearly those of the blocks.
        let exact = w[i / 8 * 8..][..8].iter().fold(0f32, |m, x| m.max(x.abs()));
        assert!((absmax - exact).abs() < 0.02, "{absmax} for {exact}");
    }
}

#[test]
fn contradictory_parts_are_refused_by_name() {
    let good = |role: &str| match role {
        "codes" => part(Dtype::I32, &[1, 1], &[0x7654_3210u32]),
        "scale" => part(Dtype::F32, &[1, 1], &[1f32]),
        _ => part(Dtype::I64, &[2], &[1i64, 8]),
    };
    let with = |role: &str, bad: Part| {
        let tensors =
            ["codes", "scale", "shape"].map(|r| (r, if r == role { bad.clone() } else { good(r) })).to_vec();
        let attributes = json!({ "bits": 4, "symmetric": true, "granularity": "channel" });
        read(parts("pack-quantized", &[1, 8], attributes, tensors)).map(|_| ()).unwrap_err().to_string()
    };
    let cases = [
        ("codes", part(Dtype::I32, &[1, 2], &[0u32; 2]), "`codes` is I32 [1, 2]"),
        ("codes", part(Dtype::U8, &[1, 4], &[0u8; 4]), "`codes` is U8"),
        ("codes", Part { data: [0u8; 3][..].into(), ..good("codes") }, "of 3 bytes"),
        ("scale", part(Dtype::F32, &[1, 2], &[1f32; 2]), "`scale` is F32 [1, 2]"),
        ("scale", part(Dtype::F32, &[1, 1], &[f32::NAN]), "not finite"),
        ("scale", part(Dtype::I32, &[1, 1], &[1i32]), "none of f16, bf16 and f32"),
        ("shape", part(Dtype::I64, &[2], &[8i64, 1]), "says Some([8, 1])"),
        ("shape", part(Dtype::I64, &[2], &[-1i64, 8]), "says None"),
    ];
    for (role, bad, expected) in cases {
        let message = with(role, bad);
        assert!(message.contains(expected) && message.contains("a.weight"), "{message}");
    }
    let attributes = json!({ "bits": 9, "symmetric": true, "granularity": "channel" });
    let error = read(parts("taper-int", &[1, 8], attributes, vec![("scale", good("scale"))])).map(|_| ());
    assert!(error.unwrap_err().to_string().contains("2 to 8 bits"));
}
