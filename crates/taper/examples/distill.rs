//! Distillation losses between a model and three of its compressed selves, and a gradient that reaches the student.

use taper::{
    bundled,
    candle::{Device, Tensor, Var},
    distill::{CrossEntropy, Dist, Hinton, Inputs, Logits, Objective, Temperature},
    prelude::*,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let scratch = tempfile::tempdir()?;
    let dir = scratch.path().join("model");
    bundled::write_to(&dir)?;
    let original = taper::open(&dir)?;
    let windows = Windows::of_text(&Tokenizer::of(&original)?, bundled::TEXT, 128)?;
    let window = windows.iter().next().ok_or("no window")?;
    // Position i predicts token i + 1; the last has nothing to predict.
    let ids = Tensor::new(&window[..127], &Device::Cpu)?.unsqueeze(0)?;
    let labels: Vec<i64> = window[1..].iter().map(|&id| i64::from(id)).collect();
    let labels = Tensor::new(labels, &Device::Cpu)?;
    let teacher = taper::build(&original)?.language()?.forward(&ids)?.squeeze(0)?;

    let two = Temperature::new(2.0)?;
    let objective = Objective::new()
        .term("cross-entropy", 0.1, CrossEntropy)
        .term("hinton kl", 0.9, Hinton::new(two))
        .term("dist", 0.5, Dist::new(1.0, 1.0, two)?);
    let students = [
        ("int8", taper::recipe::int8(None)?),
        ("int4", taper::recipe::int4(32)?),
        ("60 % pruned", Pipeline::new().then(Magnitude::new(0.6)?.on_matrices())),
    ];
    let mut kls = Vec::new();
    for (name, pipeline) in students {
        let (student, _) = pipeline.run(original.clone(), &Run::new())?;
        let logits = Var::from_tensor(&taper::build(&student)?.language()?.forward(&ids)?.squeeze(0)?)?;
        let inputs = Logits::of(&logits).teacher(&teacher).labels(&labels).prepare()?;
        let step = objective.evaluate(&Inputs::new().logits(inputs))?;
        println!("{name}\n{}", step.report);
        kls.push(step.report.get("hinton kl").ok_or("no such term")?.value);
        assert!(step.total.backward()?.get(&logits).is_some(), "the student can learn from it");
    }
    assert!(kls.is_sorted(), "the harder it is compressed, the further from its teacher: {kls:?}");
    Ok(())
}
