//! Whole nodes, as a user runs them, on either broker: one test on each at a time.

mod apache;
mod embedded;
