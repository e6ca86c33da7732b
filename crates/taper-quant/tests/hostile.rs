//! Hostile parts: whatever a file says, reading answers with a weight that decodes or with an error, never a panic.

use proptest::prelude::*;
use safetensors::Dtype;
use serde_json::{Value, json};
use taper_core::{Parts, Weight, weight::to_f32_vec};
use taper_quant::{
    Bits, Fit, Granularity, IntLayout, Nf4Scheme, PackedInt, PackedNf4, ScaleType, Scheme, codecs,
};

/// Valid parts of every codec.
fn valid() -> Vec<Parts> {
    let values: Vec<f32> = (0..6 * 40).map(|i| ((i * 31) % 47) as f32 / 9.0 - 2.0).collect();
    let groups = Scheme::new(Bits::THREE, Granularity::group(8).unwrap());
    let int = |scheme: Scheme, layout| {
        PackedInt::encode(&values, &[6, 40], &scheme, &Fit::MinMax, None, layout).unwrap().to_parts().unwrap()
    };
    let nf4 = |scheme| {
        PackedNf4::encode(&values, &[6, 40], scheme, &Fit::AbsMax, None, Default::default())
            .unwrap()
            .to_parts()
            .unwrap()
    };
    vec![
        int(groups, IntLayout::PackQuantized),
        int(groups.asymmetric(), IntLayout::PackQuantized),
        int(groups.asymmetric(), IntLayout::Taper),
        int(groups.with_granularity(Granularity::Tensor).asymmetric(), IntLayout::PackQuantized),
        int(Scheme::int8().asymmetric(), IntLayout::IntQuantized),
        int(Scheme::int8().with_scales(ScaleType::F32), IntLayout::BitsAndBytes),
        nf4(Nf4Scheme::new(16).unwrap()),
        nf4(Nf4Scheme::new(16).unwrap().double_quant()),
    ]
}

#[derive(Debug, Clone)]
enum Damage {
    Remove(usize),
    Shape(usize, Vec<usize>),
    Dtype(usize, usize),
    Data(usize, Vec<u8>),
    Byte(usize, usize, u8),
    Logical(Vec<usize>),
    Attribute(usize, usize),
    Copy(usize, String),
    State(String),
}

fn dimension() -> impl Strategy<Value = usize> {
    prop_oneof![0usize..50, Just(usize::MAX), Just(1 << 40), Just(usize::MAX / 2)]
}

fn damage() -> impl Strategy<Value = Damage> {
    let shape = || prop::collection::vec(dimension(), 0..4);
    let role =
        prop_oneof![Just("zero"), Just("group-index"), Just("order"), Just("shape")].prop_map(str::to_owned);
    let state = (prop_oneof![Just("nf4"), Just("fp4")], dimension(), dimension(), any::<bool>()).prop_map(
        |(kind, block, rows, nested)| {
            let mut state =
                json!({ "quant_type": kind, "blocksize": block, "shape": [rows, 40], "dtype": "float16" });
            if nested {
                state["nested_offset"] = json!(1e300);
                state["nested_blocksize"] = json!(block);
            }
            state.to_string()
        },
    );
    prop_oneof![
        (0usize..8).prop_map(Damage::Remove),
        (0usize..8, shape()).prop_map(|(r, s)| Damage::Shape(r, s)),
        (0usize..8, 0usize..6).prop_map(|(r, d)| Damage::Dtype(r, d)),
        (0usize..8, prop::collection::vec(any::<u8>(), 0..200)).prop_map(|(r, d)| Damage::Data(r, d)),
        (0usize..8, any::<usize>(), any::<u8>()).prop_map(|(r, at, b)| Damage::Byte(r, at, b)),
        shape().prop_map(Damage::Logical),
        (0usize..5, 0usize..9).prop_map(|(k, v)| Damage::Attribute(k, v)),
        (0usize..8, role).prop_map(|(r, name)| Damage::Copy(r, name)),
        state.prop_map(Damage::State),
    ]
}

fn apply(parts: &mut Parts, damage: Damage) {
    let roles: Vec<String> = parts.tensors.keys().cloned().collect();
    let role = |i: usize| roles.get(i % roles.len().max(1)).cloned().unwrap_or_default();
    let dtypes = [Dtype::U8, Dtype::I8, Dtype::I32, Dtype::F32, Dtype::F16, Dtype::I64];
    let values = [
        json!(0),
        json!(3),
        json!(u64::MAX),
        json!(-1),
        json!(true),
        json!("group"),
        json!("tensor"),
        Value::Null,
        json!(8),
    ];
    match damage {
        Damage::Remove(i) => drop(parts.tensors.remove(&role(i))),
        Damage::Logical(shape) => parts.shape = shape,
        Damage::Attribute(key, value) => {
            let key = ["bits", "symmetric", "granularity", "group", "block"][key];
            parts.attributes.insert(key.to_owned(), values[value].clone());
        }
        Damage::Copy(from, to) => {
            if let Some(part) = parts.tensors.get(&role(from)).cloned() {
                parts.tensors.insert(to, part);
            }
        }
        Damage::State(text) => {
            if let Some(part) = parts.tensors.get_mut("state") {
                (part.shape, part.data) = (vec![text.len()], text.into_bytes().into());
            }
        }
        Damage::Shape(i, _) | Damage::Dtype(i, _) | Damage::Data(i, _) | Damage::Byte(i, _, _) => {
            let Some(part) = parts.tensors.get_mut(&role(i)) else { return };
            match damage {
                Damage::Shape(_, shape) => part.shape = shape,
                Damage::Dtype(_, dtype) => part.dtype = dtypes[dtype],
                Damage::Data(_, data) => part.data = data.into(),
                Damage::Byte(_, at, byte) => {
                    let mut data = part.data.to_vec();
                    if !data.is_empty() {
                        let at = at % data.len();
                        data[at] = byte;
                    }
                    part.data = data.into();
                }
                _ => {}
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn damaged_parts_never_panic(which in 0usize..8, damages in prop::collection::vec(damage(), 1..4)) {
        let mut parts = valid()[which].clone();
        for damage in damages {
            apply(&mut parts, damage);
        }
        let codecs = codecs();
        let codec = codecs.get(&parts.encoding.codec.clone()).unwrap();
        if let Ok(weight) = codec.read("a.weight", parts) {
            let elements: usize = weight.shape().iter().product();
            prop_assert!(elements > 0 && elements <= 1 << 20, "no more than the bytes can say");
            prop_assert_eq!(to_f32_vec(weight.as_ref()).unwrap().len(), elements);
            prop_assert_eq!(weight.to_parts().unwrap().nbytes(), weight.nbytes());
        }
    }

    #[test]
    fn parts_of_one_codec_given_to_another_never_panic(which in 0usize..8, reader in 0usize..5) {
        let ids = ["pack-quantized", "int-quantized", "bitsandbytes-nf4", "bitsandbytes-int8", "taper-int"];
        let codecs = codecs();
        if let Ok(weight) = codecs.get(ids[reader]).unwrap().read("a.weight", valid()[which].clone()) {
            prop_assert_eq!(to_f32_vec(weight.as_ref()).unwrap().len(), 240);
        }
    }
}
