//! Promise 8: bounded memory. Derived and lazy weights live only while somebody holds them.

use crate::toy::{on_disk, tensor};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use taper_core::{Checkpoint, SharedWeight, Weight, WeightInfo};

#[test]
fn a_lazy_weight_is_shared_while_held_and_forgotten_after() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = on_disk(&dir.path().join("in"), 1);
    let first = checkpoint.get("layers.0.weight").unwrap();
    let again = checkpoint.get("layers.0.weight").unwrap();
    assert!(Arc::ptr_eq(&first, &again), "a tied weight exists once");
    let weak = Arc::downgrade(&first);
    drop((first, again));
    assert!(weak.upgrade().is_none(), "nothing is kept behind the reader's back");
}

#[test]
fn a_derived_weight_is_computed_when_asked_for() {
    let calls = Arc::new(AtomicUsize::new(0));
    let mut checkpoint = Checkpoint::new(serde_json::Map::new());
    let info = WeightInfo::of(&tensor(&[2, 3], 1) as &dyn Weight);
    let counted = calls.clone();
    checkpoint.derive("a", info, move || {
        counted.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(tensor(&[2, 3], 1)) as SharedWeight)
    });
    assert_eq!(checkpoint.info("a").unwrap().shape, [2, 3]);
    assert_eq!(calls.load(Ordering::Relaxed), 0);
    drop(checkpoint.get("a").unwrap());
    drop(checkpoint.get("a").unwrap());
    assert_eq!(calls.load(Ordering::Relaxed), 2);
}

#[test]
fn a_derived_weight_must_have_the_shape_that_was_said() {
    let mut checkpoint = Checkpoint::new(serde_json::Map::new());
    let info = WeightInfo::of(&tensor(&[2, 3], 1) as &dyn Weight);
    checkpoint.derive("a", info, || Ok(Arc::new(tensor(&[3, 2], 1)) as SharedWeight));
    assert!(checkpoint.get("a").is_err());
}
