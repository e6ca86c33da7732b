//! Taking turns: A B C A B C …, and the median of each.
//!
//! Whatever disturbs the machine then disturbs all alike, and a library that leaves threads spinning is heard by the next
//! one only in the call that is not counted.

use std::time::{Duration, Instant};

use crate::Failed;

/// One call of what is measured; it says how long the part took that counts.
pub(crate) type Work = Box<dyn FnMut() -> Result<Duration, Failed>>;

/// Turns that each contender gets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    /// Turns, at least five.
    pub(crate) turns: usize,
    /// How long a turn should take.
    pub(crate) turn: Duration,
}

impl Effort {
    /// For figures that are written down.
    pub(crate) const FULL: Self = Self { turns: 9, turn: Duration::from_millis(12) };
    /// For a look.
    pub(crate) const QUICK: Self = Self { turns: 5, turn: Duration::from_millis(3) };

    /// A contender this slow gets no more than five turns.
    const SLOW: Duration = Duration::from_millis(150);
}

/// Counts the whole of a call, and of dropping what it made.
pub(crate) fn whole<T>(mut call: impl FnMut() -> Result<T, Failed> + 'static) -> Work {
    Box::new(move || {
        let clock = Instant::now();
        drop(call()?);
        Ok(clock.elapsed())
    })
}

/// Median milliseconds per call of each.
pub(crate) fn race(contenders: &mut [&mut Work], effort: Effort) -> Result<Vec<f64>, Failed> {
    let mut calls = Vec::new();
    for work in contenders.iter_mut() {
        work()?; // first calls prepare, second ones are representative
        let once = work()?.max(Duration::from_nanos(100));
        calls.push((effort.turn.as_nanos() / once.as_nanos()).clamp(1, 5000) as u32);
    }
    let slow = |work: &mut &mut Work| -> Result<bool, Failed> { Ok(work()? > Effort::SLOW) };
    let mut turns = effort.turns;
    for work in contenders.iter_mut() {
        turns = if slow(work)? { turns.min(5) } else { turns };
    }
    let mut times = vec![Vec::new(); contenders.len()];
    for _ in 0..turns {
        for ((work, calls), times) in contenders.iter_mut().zip(&calls).zip(&mut times) {
            if *calls > 1 {
                work()?;
            }
            let mut total = Duration::ZERO;
            for _ in 0..*calls {
                total += work()?;
            }
            times.push(total.as_secs_f64() * 1e3 / f64::from(*calls));
        }
    }
    Ok(times.into_iter().map(median).collect())
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    let middle = times.len() / 2;
    if times.len() % 2 == 1 { times[middle] } else { (times[middle - 1] + times[middle]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        assert_eq!(median(vec![9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 9.0]), 3.0);
    }

    #[test]
    fn times_are_those_that_the_work_states() {
        let stated = |ms| -> Work { Box::new(move || Ok(Duration::from_millis(ms))) };
        let (mut a, mut b) = (stated(2), stated(50));
        assert_eq!(race(&mut [&mut a, &mut b], Effort::QUICK).unwrap(), [2.0, 50.0]);
    }
}
