//! The typed configuration tree: the node's file, a deployment's document, a module's manifest.

pub mod deployment;
pub mod manifest;
