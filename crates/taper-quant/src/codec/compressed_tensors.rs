//! The `quantization_config` of compressed-tensors, read and written.
//!
//! A config has groups: each names its modules (`targets`: module names, `re:` expressions, class names) and says how
//! their weights are stored. Reading goes by array names first and asks the groups only for the scheme, so a module in
//! no group is an error, never a guess. Class names match every module, because a checkpoint does not tell classes.
//!
//! A group's `input_activations` are honoured where they are symmetric integers of eight bits: dynamic, or static with one scale
//! per layer (`X.input_scale`). Inputs quantized in another way stay as they are, and their arrays plain tensors.
//!
//! Neighbours: [`super::pack_quantized`] and [`super::int_quantized`] are the codecs of this family.

use regex::Regex;
use safetensors::Dtype;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use taper_core::{Claim, Codec, Error, Result, StoredWeight, store::Listing};

use super::{integer, module, pack_quantized, targets::targets};
use crate::{
    layout::{CODES, GROUP_INDEX, INPUT, IntLayout, SCALE, SHAPE, ZERO},
    scheme::{Activations, Bits, Granularity, ScaleType, Scheme, Symmetry},
};

/// The family of codecs that share this config.
pub const FAMILY: &str = "compressed-tensors";

/// The release whose fields are written.
const VERSION: &str = "0.13.0";

/// One group of a config.
#[derive(Debug)]
struct Group {
    format: String,
    targets: Vec<Target>,
    scheme: Scheme,
}

#[derive(Debug)]
enum Target {
    Module(String),
    Expression(Regex),
    Class,
}

impl Group {
    /// How closely a module is named: by its name before by an expression before by its class.
    fn rank(&self, module: &str) -> Option<u8> {
        let rank = |target: &Target| match target {
            Target::Module(name) => (name == module).then_some(0),
            Target::Expression(regex) => regex.is_match(module).then_some(1),
            Target::Class => Some(2),
        };
        self.targets.iter().filter_map(rank).min()
    }
}

fn bad(key: &str, message: impl Into<String>) -> Error {
    Error::BadConfig { key: format!("quantization_config.{key}"), message: message.into() }
}

/// The groups of a checkpoint's config; empty where it is not compressed-tensors.
fn groups(config: &Map<String, Value>) -> Result<Vec<Group>> {
    let Some(quantization) = config.get("quantization_config").or_else(|| config.get("compression_config"))
    else {
        return Ok(Vec::new());
    };
    if quantization.get("quant_method").and_then(Value::as_str) != Some(FAMILY) {
        return Ok(Vec::new());
    }
    for (key, inner) in [("transform_config", "config_groups"), ("sparsity_config", "format")] {
        let value = quantization.get(key).and_then(|v| v.get(inner));
        let empty = match value {
            None | Some(Value::Null) => true,
            Some(Value::Object(map)) => map.is_empty(),
            Some(Value::String(format)) => format == "dense",
            Some(_) => false,
        };
        if !empty {
            return Err(bad(key, "is not read: the stored weights are not the model's weights alone"));
        }
    }
    let default = quantization.get("format").and_then(Value::as_str).unwrap_or("pack-quantized");
    let listed = quantization
        .get("config_groups")
        .and_then(Value::as_object)
        .ok_or_else(|| bad("config_groups", "is missing or not an object"))?;
    listed
        .iter()
        .filter(|(_, group)| group.get("weights").is_some_and(Value::is_object))
        .map(|(name, value)| group(&format!("config_groups.{name}"), value, default))
        .collect()
}

fn group(key: &str, value: &Value, default: &str) -> Result<Group> {
    let format = value.get("format").and_then(Value::as_str).unwrap_or(default);
    if !matches!(format, "pack-quantized" | "int-quantized" | "naive-quantized") {
        let message =
            format!("`{format}` is not read; pack-quantized, int-quantized and naive-quantized integers are");
        return Err(bad(&format!("{key}.format"), message));
    }
    let targets = value
        .get("targets")
        .and_then(Value::as_array)
        .ok_or_else(|| bad(&format!("{key}.targets"), "is missing or not a list"))?
        .iter()
        .map(|t| target(key, t))
        .collect::<Result<_>>()?;
    let scheme = scheme(&format!("{key}.weights"), value.get("weights").unwrap_or(&Value::Null))?
        .with_activations(activations(value.get("input_activations")));
    Ok(Group { format: format.to_owned(), targets, scheme })
}

fn target(key: &str, value: &Value) -> Result<Target> {
    let key = format!("{key}.targets");
    let text = value.as_str().ok_or_else(|| bad(&key, "has an entry that is not a text"))?;
    if let Some(source) = text.strip_prefix("re:") {
        // Python's `re.match` is anchored at the start only.
        let regex = Regex::new(&format!("^(?:{source})"));
        return Ok(Target::Expression(regex.map_err(|e| bad(&key, format!("`{text}`: {e}")))?));
    }
    let class = text.starts_with(|c: char| c.is_ascii_uppercase()) && !text.contains('.');
    Ok(if class { Target::Class } else { Target::Module(text.to_owned()) })
}

/// How a group wants inputs to be rounded, as far as products here can do that.
fn activations(value: Option<&Value>) -> Activations {
    let Some(inputs) = value.filter(|v| v.is_object()) else { return Activations::Float };
    let text = |name: &str| inputs.get(name).and_then(Value::as_str);
    let bytes = inputs.get("num_bits").and_then(Value::as_u64) == Some(8);
    let integers = text("type").is_none_or(|kind| kind == "int");
    let symmetric = inputs.get("symmetric").and_then(Value::as_bool) != Some(false);
    if !(bytes && integers && symmetric) {
        return Activations::Float;
    }
    match (inputs.get("dynamic"), text("strategy")) {
        (Some(Value::Bool(true)), None | Some("token" | "tensor")) => Activations::Dynamic,
        (None | Some(Value::Bool(false)), None | Some("tensor")) => Activations::Static,
        _ => Activations::Float,
    }
}

fn scheme(key: &str, weights: &Value) -> Result<Scheme> {
    let text = |name: &str| weights.get(name).and_then(Value::as_str);
    if let Some(kind) = text("type").filter(|kind| *kind != "int") {
        return Err(bad(&format!("{key}.type"), format!("`{kind}` is not read; int is")));
    }
    let bits = weights.get("num_bits").and_then(Value::as_u64).unwrap_or(8);
    let bits = Bits::new(bits).map_err(|e| bad(&format!("{key}.num_bits"), e.to_string()))?;
    let size = weights.get("group_size").and_then(Value::as_i64).filter(|&size| size > 0);
    let group = || {
        let size = size.and_then(|size| usize::try_from(size).ok());
        let size = size.ok_or_else(|| bad(&format!("{key}.group_size"), "is missing or not positive"))?;
        Granularity::group(size).map_err(Error::from)
    };
    let granularity = match text("strategy") {
        Some("tensor") => Granularity::Tensor,
        Some("channel") => Granularity::Channel,
        Some("group") => group()?,
        // Files from before strategies were written out.
        None if size.is_some() => group()?,
        None if weights.get("group_size").is_some_and(Value::is_number) => Granularity::Channel,
        None => Granularity::Tensor,
        Some(other) => {
            let message = format!("`{other}` is not read; tensor, channel and group are");
            return Err(bad(&format!("{key}.strategy"), message));
        }
    };
    let symmetry = match weights.get("symmetric").and_then(Value::as_bool) {
        Some(false) => Symmetry::Asymmetric,
        _ => Symmetry::Symmetric,
    };
    Ok(Scheme { bits, symmetry, granularity, scales: ScaleType::F16, activations: Activations::Float })
}

/// The weights of one layout among a checkpoint's arrays.
pub(super) fn claim(
    codec: &impl Codec,
    layout: IntLayout,
    listing: &Listing,
    config: &Map<String, Value>,
) -> Result<Vec<Claim>> {
    let groups = groups(config)?;
    if groups.is_empty() {
        return Ok(Vec::new());
    }
    let packed = layout == IntLayout::PackQuantized;
    let mut claims = Vec::new();
    for name in listing.names() {
        let weight = if packed { name.strip_suffix("_packed") } else { Some(name) };
        let (Some(weight), Some(array)) = (weight, listing.array(name)) else { continue };
        let wanted = if packed { Dtype::I32 } else { Dtype::I8 };
        if array.dtype != wanted || listing.array(&codec.part_name(weight, SCALE)).is_none() {
            continue;
        }
        let refuse = |message: String| Error::BadParts {
            weight: weight.to_owned(),
            codec: layout.codec().to_owned(),
            message,
        };
        let found =
            groups.iter().filter_map(|g| Some((g.rank(module(weight))?, g))).min_by_key(|(rank, _)| *rank);
        let Some((_, group)) = found else {
            return Err(refuse("no group of `quantization_config` names its module".into()));
        };
        if packed != (group.format == "pack-quantized") {
            return Err(refuse(format!("its group says format `{}`", group.format)));
        }
        let shape = if packed {
            let stated = codec.part_name(weight, SHAPE);
            listing
                .array(&stated)
                .and_then(|a| pack_quantized::shape_of(a.dtype, listing.bytes(&stated)?))
                .ok_or_else(|| refuse(format!("`{stated}` is missing or no shape")))?
        } else {
            array.shape.to_vec()
        };
        claims.push(one_claim(codec, layout, listing, weight, shape, group));
    }
    Ok(claims)
}

fn one_claim(
    codec: &impl Codec,
    layout: IntLayout,
    listing: &Listing,
    weight: &str,
    shape: Vec<usize>,
    group: &Group,
) -> Claim {
    let mut scheme = group.scheme;
    if let Some(scale) = listing.array(&codec.part_name(weight, SCALE)) {
        scheme.scales = match scale.dtype {
            Dtype::BF16 => ScaleType::BF16,
            Dtype::F32 => ScaleType::F32,
            _ => ScaleType::F16,
        };
    }
    if layout == IntLayout::IntQuantized {
        scheme.bits = Bits::EIGHT;
    }
    let mut roles = vec![CODES, SCALE, ZERO, SHAPE, GROUP_INDEX];
    if scheme.activations == Activations::Static {
        roles.push(INPUT);
    }
    let arrays: BTreeMap<String, String> = roles
        .into_iter()
        .map(|role| (role.to_owned(), codec.part_name(weight, role)))
        .filter(|(_, name)| listing.array(name).is_some())
        .collect();
    Claim {
        weight: weight.to_owned(),
        encoding: integer::encoding(layout, &scheme),
        shape,
        attributes: integer::attributes(&scheme),
        arrays,
    }
}

/// The config of a checkpoint with these weights; one group for each scheme and layout.
pub(super) fn config(stored: &[StoredWeight<'_>], left_dense: &[&str]) -> Result<Option<Value>> {
    let mut kinds: BTreeMap<(&str, String), Vec<&StoredWeight<'_>>> = BTreeMap::new();
    for weight in stored {
        let kind = (weight.codec, Value::Object(weight.attributes.clone()).to_string());
        kinds.entry(kind).or_default().push(weight);
    }
    let dense: Vec<&str> = left_dense.iter().map(|name| module(name)).collect();
    let mut config_groups = Map::new();
    for (index, (kind, members)) in kinds.iter().enumerate() {
        let names: Vec<&str> = members.iter().map(|w| module(w.name)).collect();
        let rest = kinds.iter().filter(|(other, _)| *other != kind).flat_map(|(_, weights)| weights);
        let others: Vec<&str> = dense.iter().copied().chain(rest.map(|w| module(w.name))).collect();
        let scheme =
            integer::scheme(members[0].attributes, ScaleType::F16).map_err(|m| bad("config_groups", m))?;
        config_groups.insert(
            format!("group_{index}"),
            json!({
                "targets": targets(&names, &others),
                "format": kind.0,
                "weights": weights_config(&scheme),
                "input_activations": inputs_config(scheme.activations),
                "output_activations": null,
            }),
        );
    }
    let mut formats: Vec<&str> = kinds.keys().map(|(codec, _)| *codec).collect();
    formats.dedup();
    let all: Vec<&str> = stored.iter().map(|w| module(w.name)).collect();
    Ok(Some(json!({
        "quant_method": FAMILY,
        "format": if let [one] = formats[..] { one } else { "mixed-precision" },
        "quantization_status": "compressed",
        "global_compression_ratio": null,
        "ignore": targets(&dense, &all),
        "kv_cache_scheme": null,
        "version": VERSION,
        "config_groups": config_groups,
    })))
}

fn inputs_config(activations: Activations) -> Value {
    let (strategy, dynamic, observer) = match activations {
        Activations::Float => return Value::Null,
        Activations::Dynamic => ("token", true, None),
        Activations::Static => ("tensor", false, Some("minmax")),
    };
    json!({
        "num_bits": 8,
        "type": "int",
        "symmetric": true,
        "strategy": strategy,
        "group_size": null,
        "block_structure": null,
        "dynamic": dynamic,
        "actorder": null,
        "observer": observer,
        "observer_kwargs": {},
    })
}

fn weights_config(scheme: &Scheme) -> Value {
    let (strategy, size) = match scheme.granularity {
        Granularity::Tensor => ("tensor", None),
        Granularity::Channel => ("channel", None),
        Granularity::Group(size) => ("group", Some(size.get())),
    };
    json!({
        "num_bits": u64::from(scheme.bits),
        "type": "int",
        "symmetric": scheme.is_symmetric(),
        "strategy": strategy,
        "group_size": size,
        "block_structure": null,
        "dynamic": false,
        "actorder": null,
        "observer": "minmax",
        "observer_kwargs": {},
    })
}
