//! The flights example's parts, each usable on its own: the whole-node tests feed and judge with them.
//!
//! | module | what it is |
//! |---|---|
//! | [`feed`] | flights into their topic, each exactly once |
//! | [`client`] | what is asked over gRPC |
//! | [`statistics`], [`check`] | the numbers of a group; comparing them with the separate program's |

#![forbid(unsafe_code)]

pub mod check;
pub mod client;
pub mod feed;
pub mod statistics;
