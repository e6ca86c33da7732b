//! A run that was stopped half way goes on, and ends with the bytes of one that was not.

mod bundle;

use bundle::{Bundle, Tested, bytes};
use std::sync::atomic::{AtomicUsize, Ordering};
use taper::{Error, bundled::RECIPES, prelude::*, store::output::Resume};

/// Asks to stop after so many weights, and counts the weights that an earlier run had finished.
#[derive(Default)]
struct StopAfter {
    weights: usize,
    seen: AtomicUsize,
    resumed: AtomicUsize,
}

impl Progress for StopAfter {
    fn on(&self, event: &Event<'_>) -> Flow {
        if let Event::Weight { resumed, .. } = event {
            self.resumed.fetch_add(usize::from(*resumed), Ordering::SeqCst);
            if self.seen.fetch_add(1, Ordering::SeqCst) + 1 == self.weights {
                return Flow::Cancel;
            }
        }
        Flow::Continue
    }
}

#[test]
fn a_stopped_run_resumes_to_the_same_bytes() -> Tested {
    let bundle = Bundle::new()?;
    for (name, recipe) in RECIPES {
        let pipeline = Recipe::parse(recipe)?.pipeline();
        let whole = bundle.at(&format!("{name}-whole"));
        pipeline.run_to(bundle.open()?, &whole, &Run::new())?;
        let out = bundle.at(name);
        let stop = StopAfter { weights: 7, ..StopAfter::default() };
        let error = pipeline.run_to(bundle.open()?, &out, &Run::new().with_progress(&stop)).unwrap_err();
        assert!(error.is_cancelled() && !out.exists(), "{name}: {error}");
        assert!(matches!(
            pipeline.run_to(bundle.open()?, &out, &Run::new()).unwrap_err(),
            Error::UnfinishedRun { .. }
        ));
        let rest = StopAfter::default();
        let run = Run::new().with_progress(&rest).with_resume(Resume::Continue);
        pipeline.run_to(bundle.open()?, &out, &run)?;
        // A recipe that only cuts does its work before anything is written and may have stopped before the first weight.
        let before = rest.resumed.load(Ordering::SeqCst);
        assert!(before == 7 || name == "structured-25", "{name}: {before}");
        assert!(bytes(&out)? == bytes(&whole)?, "{name}");
        assert!(!bundle.at(&format!("{name}.partial")).exists());
    }
    Ok(())
}

#[test]
fn another_recipe_refuses_to_resume() -> Tested {
    let bundle = Bundle::new()?;
    let [(_, first), (_, second), ..] = RECIPES;
    let out = bundle.at("out");
    let stop = StopAfter { weights: 3, ..StopAfter::default() };
    let run = Run::new().with_progress(&stop);
    Recipe::parse(first)?.pipeline().run_to(bundle.open()?, &out, &run).unwrap_err();
    let run = Run::new().with_resume(Resume::Continue);
    let error = Recipe::parse(second)?.pipeline().run_to(bundle.open()?, &out, &run).unwrap_err();
    assert!(error.to_string().contains("had another recipe"), "{error}");
    assert!(bundle.at("out.partial").exists(), "what was finished is still there for the right recipe");
    Ok(())
}
