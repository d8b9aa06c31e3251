//! Why a test broker could not be had. Every variant says what to look at.

use std::path::PathBuf;
use std::time::Duration;

/// All ways in which starting or using the test broker can fail.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory of the harness could not be used.
    #[error("{path}: {source}")]
    File {
        /// The file in question.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A program could not be started at all, so it is probably not installed.
    #[error("cannot run `{program}` (is it installed?): {source}")]
    Missing {
        /// Name of the program.
        program: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A program ran and reported failure.
    #[error("`{program}` failed: {output}")]
    Failed {
        /// Name of the program or Java class.
        program: String,
        /// Its last output.
        output: String,
    },
    /// The broker did not come up in time.
    #[error("Apache Kafka did not start within {waited:?}; its log ends:\n{log}")]
    NotStarted {
        /// How long the harness waited.
        waited: Duration,
        /// The end of the broker's log.
        log: String,
    },
    /// No free port could be reserved on loopback.
    #[error("no free port on 127.0.0.1: {0}")]
    NoPort(std::io::Error),
}

impl Error {
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::File { path, source }
    }
}
