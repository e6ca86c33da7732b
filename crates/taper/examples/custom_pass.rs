//! A pass of your own: pulls outliers in to a few standard deviations, so that coarse scales waste fewer codes on them.

use serde_json::{Value, json};
use taper::{bundled, candle, prelude::*, weight::to_f32_vec};

#[derive(Debug)]
struct ClipOutliers {
    deviations: f32,
}

impl WeightPass for ClipOutliers {
    fn name(&self) -> &str {
        "clip-outliers"
    }

    fn stage(&self) -> Stage {
        Stage::Value // values change, shapes do not; so it must stand before anything that packs
    }

    fn settings(&self) -> Value {
        json!({ "deviations": self.deviations })
    }

    fn rewrite(&self, _: &str, weight: &SharedWeight, _: &Context<'_>) -> taper::Result<Rewrite> {
        let mut values = to_f32_vec(weight.as_ref())?;
        let mean_square = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
        let most = self.deviations * mean_square.sqrt();
        let outside = values.iter().filter(|v| v.abs() > most).count();
        if outside == 0 {
            return Ok(Rewrite::left(format!("no value is beyond {most:.3}"))); // never silent
        }
        values.iter_mut().for_each(|v| *v = v.clamp(-most, most));
        let clipped = candle::Tensor::from_vec(values, weight.shape(), &candle::Device::Cpu)?;
        Ok(Rewrite::done(clipped.to_dtype(weight.dense()?.dtype())?))
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let scratch = tempfile::tempdir()?;
    let dir = scratch.path().join("model");
    bundled::write_to(&dir)?;
    let clip = || ClipOutliers { deviations: 3.0 }.on_matrices();
    let (clipped, report) = Pipeline::new().then(clip()).run(taper::open(&dir)?, &Run::new())?;
    println!("{report}\n"); // selection, order, verification, damage and timing come from the driver
    for name in clipped.names() {
        let values = to_f32_vec(clipped.get(&name)?.as_ref())?;
        assert!(values.iter().all(|v| v.is_finite()), "{name}");
    }
    assert!(report.passes[0].rows.iter().all(|row| row.damage.is_none_or(|d| d.normalised_mse < 0.05)));

    let late = taper::recipe::int4(128)?.then(clip());
    let refused = late.run(taper::open(&dir)?, &Run::new()).err().ok_or("order was not checked")?;
    println!("after packing: {refused}");
    Ok(())
}
