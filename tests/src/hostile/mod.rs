//! Hostile guests and clients beside an innocent deployment: `make hostile`, and `make soak`.
//!
//! ```text
//!   neighbour: 5,000 records/s, open loop ----> node ----> what it did to rate and p99
//!                                                ^
//!   case: one guest, module or client -----------+-------> what an operator is told, how soon, memory
//! ```
//!
//! | file | what it does |
//! |---|---|
//! | [`stage`] | one node, its broker, its neighbour; runs one case and judges it |
//! | `flood` | a guest's records, over and over, and what is told of them |
//! | `acts` | what takes more than one record over and over: traffic, a bad version, clients |
//! | `accounts` | what the records of a guest have come to, by what lies in Kafka |
//! | [`case`] | the list of them, by the numbers of the fault matrix |
//! | [`modules`] | modules that no compiler would make |
//! | [`clients`] | clients that no library would make |
//! | [`neighbour`] | the innocent deployment, fed and measured |
//! | [`process`] | memory, threads, descriptors and mappings of a node, from outside |
//! | [`churn`] | a thousand deploys and deletes, and two hundred small deployments |
//! | [`bare`] | what those need for librdkafka alone |

mod accounts;
mod acts;
pub mod bare;
pub mod case;
pub mod churn;
pub mod clients;
mod flood;
pub mod modules;
pub mod neighbour;
pub mod process;
pub mod stage;
