//! Every promise of the design has a test here, on a toy encoding and toy passes that core itself does not know.

mod atomic;
mod bounded;
mod bridge;
mod calibrated;
mod deterministic;
mod honest;
mod hostile;
mod nothing_silent;
mod order;
mod products;
mod resume;
mod stats;
mod toy;
mod verified;
