//! What only the embedded broker has: its start and stop, its bounds, its data directory.

mod child;
mod journal;
mod kill;
mod limits;
mod markers;
#[path = "../common/raw.rs"]
mod raw;
mod start;
mod steps;
