//! Whole-node tests: they start the programs as a user does and look at them from outside.
//!
//! | file | what it holds to account |
//! |---|---|
//! | `tests/architecture.rs` | which module of the runtime may name which other, and which foreign crate |
//! | `tests/embedded.rs`, `tests/apache.rs` | the cases of [`cases`], on either broker |
//! | `src/inputs.rs` | those of the cases in which a deployment's inputs change |
//! | `src/taken_back.rs` | versions that are taken back under traffic |
//! | `src/upgrade.rs` | a fleet that is upgraded one node at a time |
//! | `src/reads.rs` | every write is read at its position (`make reads`, and in short on either broker) |
//! | `src/permissions.rs` | a cluster that asks who may do what |
//! | `src/security.rs` | the one about certificates, roles, the audit log and secrets |
//! | `tests/bad_input.rs` | one clear error for every mistake, quickly |
//! | `tests/tutorial.rs` | the commands of the README, in order |
//!
//! The harness: [`programs`] finds and runs the binaries, [`cluster`] is a broker, [`node`] a node
//! process, [`pipeline`] the flights example on them, [`reading`] plain consumers, [`wait`] the only way
//! to wait.
//!
//! Hostile guests and clients (`make hostile`, `make soak`): [`hostile`].
//!
//! Fault runs (`make faults`, `make chaos`): [`rig`] kills nodes under load and leaves [`evidence`],
//! which [`check`] judges in a program of its own, `tidemill-check`. [`outbox`] does both for what leaves Kafka
//! (`make outbox`), [`poison`] for what fails (`make poison`), both scene by scene ([`play`]), and [`dedupe`] is the workload of `make inbox`.

#![forbid(unsafe_code)]

pub mod cases;
pub mod check;
pub mod cluster;
pub mod dedupe;
pub mod evidence;
pub mod hostile;
pub mod inputs;
pub mod kfault;
pub mod node;
pub mod orders;
pub mod outbox;
pub mod permissions;
pub mod pipeline;
pub mod play;
pub mod poison;
pub mod programs;
pub mod reading;
pub mod reads;
pub mod rig;
pub mod security;
pub mod taken_back;
pub mod upgrade;
pub mod wait;
