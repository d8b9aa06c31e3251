//! What tidemill costs, measured beside a native program on librdkafka and beside what else one would use.
//!
//! Only ratios count, of runs that are interleaved or side by side: absolute figures on a shared machine move by half.
//!
//! | module | what it is |
//! |---|---|
//! | [`table`], [`terms`] | what is measured: workloads, contenders, ratios and their bars |
//! | [`suite`], [`rounds`] | the order of runs; figures, medians, ratios within a round |
//! | [`run`] | one run: what is counted, and from when to when |
//! | [`pair`] | contenders that run at the same time |
//! | [`contender`] | how each is started: [`native`] (over [`raw`]), [`node`] (as [`changes`] have it), [`streams`] |
//! | [`latency`], [`segments`], [`saturation`] | end to end, under an open load; its parts, by what a node says; a load that grows until it is too much |
//! | [`load`], [`keys`], [`topics`] | what they read |
//! | [`group`], [`outputs`], [`process`] | how far they are; what comes out; CPU time and memory |
//! | [`module`] | what a deploy is measured with |
//! | [`linked`] | the handler of a node that has no Wasm between them, for the Wasm tax |
//! | [`boundary`], [`steps`], [`queues`], [`meter`] | what it costs to be in Wasm; what steps cost by themselves, those between a worker and its brokers included; and by what that is told |
//! | [`ingestion`] | ways in which a restore can write what it reads |
//! | [`threads`], [`budget`] | what each thread costs; all of it as one table that sums up |
//! | [`report`], [`charts`], [`markdown`], [`absolute`] | the terminal and JSON; SVG; tables for the README and docs/performance.md |
//! | [`machine`] | where it is measured |
//! | [`record`] | what other programs have measured |
//! | [`bounds`] | how much may be asked for, and how much is kept |
//! | [`restart`], [`survivor`] | kill -9 to first new output; who is killed |

pub mod absolute;
pub mod boundary;
pub mod bounds;
pub mod budget;
pub mod changes;
pub mod charts;
pub mod contender;
pub mod group;
pub mod ingestion;
pub mod keys;
pub mod latency;
pub mod linked;
pub mod load;
pub mod machine;
pub mod markdown;
pub mod meter;
pub mod module;
pub mod native;
pub mod node;
pub mod outputs;
pub mod pair;
pub mod process;
pub mod queues;
pub mod raw;
pub mod record;
pub mod report;
pub mod restart;
pub mod rounds;
pub mod run;
pub mod saturation;
pub mod segments;
pub mod steps;
pub mod streams;
pub mod suite;
pub mod survivor;
pub mod table;
pub mod terms;
pub mod threads;
pub mod topics;
