//! What tidemill costs, measured beside what it could cost at best.
//!
//! Only ratios of interleaved runs count: absolute figures on a shared machine move by half.
//!
//! | module | what it is |
//! |---|---|
//! | [`native`] | the rival: a stateless map as a plain librdkafka program, written as well as we can |
//! | [`raw`] | the few librdkafka calls that it needs, made safe |
//! | [`load`] | topics and records that a run reads |
//! | [`node`] | the other side: a tidemill node for one run |
//! | [`process`] | child processes and their CPU time |
//! | [`rounds`] | interleaved rounds and the medians of their ratios |

pub mod load;
pub mod native;
pub mod node;
pub mod process;
pub mod raw;
pub mod rounds;
