//! Whole-node tests: they start the programs as a user does and look at them from outside.
//!
//! | file | what it holds to account |
//! |---|---|
//! | `tests/architecture.rs` | which module of the runtime may name which other, and which foreign crate |
