//! The fault rig: runs workloads on nodes while it kills them, and has the checker judge what is left.
//!
//! ```text
//!  case (from a seed) --> round: cluster, nodes, deployments
//!                           |  feed ----> input topics ----> nodes ----> output topics ----> watch
//!                           |               nemesis: kills, restarts, wiped stores
//!                           v
//!                         dump: topics, offsets, stores, acknowledgements --> tidemill-check
//! ```
//!
//! | file | what it does |
//! |---|---|
//! | [`case`] | everything that a round is, derived from its seed |
//! | [`feed`] | producers, and what they know about each record |
//! | [`watch`] | how long outputs stand still |
//! | [`fleet`] | the nodes of a round and what is deployed on them |
//! | [`dump`] | topics, ends, offsets and stores, for the checker |
//! | [`round`] | one round from beginning to verdict |
//! | [`moves`] | what it costs when tasks move |
//! | [`scenario`] | one fault by hand, for the named tests |
//! | [`versions`] | versions of the chain under traffic, and who handled what |
//! | [`swap`] | versions that follow each other under load, and what that costs |

pub mod case;
pub mod dump;
pub mod feed;
pub mod fleet;
pub mod moves;
pub mod round;
pub mod scenario;
pub mod swap;
pub mod versions;
pub mod watch;
