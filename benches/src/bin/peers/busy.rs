//! The same products while another program keeps a thread busy.
//!
//! With as many workers as cores and one thread more, a fair share is cores / (workers + 1) of the machine: 1.5 times the
//! time on two cores. Work that was dealt out in fixed parts waits for the slower worker, 2 times; threads that spin for
//! each other wait for whole slices of the scheduler's time.

use std::{
    hint::spin_loop,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use crate::{
    Failed,
    clock::{self, Effort, Work},
    job::{Cost, Race, Spec, Target},
    products::{self, Format, INT8},
    shelf::{Shape, Shelf},
};

const SHAPE: Shape = [4096, 4096];
/// How much slower a product may become.
const ALLOWED: f64 = 1.6;

pub(crate) fn specs() -> Vec<Spec> {
    [1, 8, 64, 512].into_iter().map(spec).collect()
}

fn spec(batch: usize) -> Spec {
    let format = Format::Int(4, 128);
    Spec::new(format!("busy-{}-{}", format.name(), INT8.0), SHAPE, batch, move |shelf| {
        disturbed(shelf, format, batch)
    })
}

fn disturbed(shelf: &Shelf, format: Format, batch: usize) -> Result<Race, Failed> {
    let mut race = products::race(shelf, format, INT8, SHAPE, batch)?;
    let mut works = vec![&mut race.ours.work];
    works.extend(race.peers.iter_mut().map(|peer| &mut peer.work));
    let alone = clock::race(&mut works, Effort::FULL)?;
    race.cost = Cost::NONE;
    race.target = Target::Milliseconds(ALLOWED * alone[0]);
    race.extra = vec![("undisturbed_ms", alone[0]), ("candle_undisturbed_ms", alone[1])];
    let busy = Busy::start();
    let mut work = race.ours.work;
    race.ours.work = Box::new(move || {
        debug_assert!(busy.is_running());
        work()
    }) as Work;
    Ok(race)
}

/// A thread that does nothing, all the time, until it is dropped.
struct Busy(Arc<AtomicBool>);

impl Busy {
    fn start() -> Self {
        let running = Arc::new(AtomicBool::new(true));
        let watched = Arc::clone(&running);
        thread::spawn(move || {
            while watched.load(Ordering::Relaxed) {
                spin_loop();
            }
        });
        Self(running)
    }

    fn is_running(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}
