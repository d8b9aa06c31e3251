//! Modules by digest: in `_<fleet>.modules` as chunks, and in a directory of this node as files. What no version
//! names leaves both: the topic by [`super::uploads`], the directory by [`ModuleDir::tidy`].
//!
//! Layout of the topic (in Kafka since 0.1): key `<sha256 hex>/<chunk index>/<chunks>/<upload>`, value the chunk.
//! Every upload has keys of its own, so that what deletes one takes nothing of another. All uploads of a module have
//! the same chunks, so that a reader takes each from whichever has it.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::config::units::show_hex;
use crate::kafka::topic_log::{AppendError, TopicLog};
use crate::ports::SourceError;
use crate::record::Offset;

/// Below every broker's default message limit of 1 MiB.
const CHUNK_BYTES: usize = 512 << 10;

#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    #[error(
        "module {digest} is not in the fleet's modules topic; deploy it again with a change of the document (a comment will do): what \
         is the same is not uploaded again"
    )]
    Missing { digest: String },
    #[error("modules topic: {0}")]
    Kafka(#[from] SourceError),
    #[error("modules topic: {0}")]
    Append(#[from] AppendError),
    #[error("{path}: {reason}")]
    Disk { path: PathBuf, reason: io::Error },
}

/// SHA-256, lower-case hexadecimal.
pub fn digest(module: &[u8]) -> String {
    show_hex(&Sha256::digest(module))
}

/// Of a record in the topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ChunkKey<'a> {
    pub digest: &'a str,
    pub index: usize,
    pub chunks: usize,
    /// No other upload has it. Empty, and without its slash, in keys from before uploads were told apart.
    pub upload: &'a str,
}

impl<'a> ChunkKey<'a> {
    /// None of a key that is not ours.
    pub fn parse(key: &'a [u8]) -> Option<ChunkKey<'a>> {
        let mut parts = std::str::from_utf8(key).ok()?.splitn(4, '/');
        Some(ChunkKey {
            digest: parts.next()?,
            index: parts.next()?.parse().ok()?,
            chunks: parts.next()?.parse().ok()?,
            upload: parts.next().unwrap_or_default(),
        })
    }
}

impl fmt::Display for ChunkKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ChunkKey { digest, index, chunks, upload } = self;
        write!(f, "{digest}/{index}/{chunks}/{upload}")
    }
}

/// Uploads a module, chunk by chunk, whether it is there or not; it can be loaded once this has returned.
pub fn publish(log: &TopicLog, digest: &str, module: &[u8]) -> Result<(), ModuleError> {
    let upload = uuid::Uuid::new_v4().simple().to_string();
    let chunks = module.len().div_ceil(CHUNK_BYTES);
    for (index, chunk) in module.chunks(CHUNK_BYTES).enumerate() {
        let key = ChunkKey { digest, index, chunks, upload: &upload }.to_string();
        log.append(Some(key.as_bytes()), Some(chunk))?;
    }
    Ok(())
}

/// The files of a node's modules.
pub struct ModuleDir {
    dir: PathBuf,
    /// Held while a file is written: deployments of one module that start at once all keep it.
    writing: Mutex<()>,
}

impl ModuleDir {
    pub fn open(dir: &Path) -> Result<ModuleDir, ModuleError> {
        std::fs::create_dir_all(dir).map_err(|reason| disk(dir, reason))?;
        Ok(ModuleDir { dir: dir.to_owned(), writing: Mutex::default() })
    }

    /// A module, from disk or else from the topic.
    pub fn load(&self, digest: &str, log: &TopicLog) -> Result<Vec<u8>, ModuleError> {
        if let Some(module) = self.on_disk(digest)? {
            return Ok(module);
        }
        let module = from_topic(log, digest)?;
        self.keep(digest, &module)?;
        Ok(module)
    }

    /// Keeps a copy; a crash half-way leaves no file that looks whole.
    pub fn keep(&self, digest: &str, module: &[u8]) -> Result<(), ModuleError> {
        let path = self.path(digest);
        let partial = path.with_extension("partial");
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        std::fs::write(&partial, module).map_err(|reason| disk(&partial, reason))?;
        std::fs::rename(&partial, &path).map_err(|reason| disk(&path, reason))
    }

    /// Deletes the files of modules that nothing names, and what a crash left half-written, once they are
    /// `grace` old: a module is kept before a version names it. One that is wanted after all is fetched again.
    pub fn tidy(&self, is_named: impl Fn(&str) -> bool, grace: Duration) -> Result<(), ModuleError> {
        let failed = |reason| disk(&self.dir, reason);
        for entry in std::fs::read_dir(&self.dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = entry.path();
            let is_ours = path.extension().is_some_and(|ending| ending == "wasm" || ending == "partial");
            if !is_ours || path.file_stem().and_then(|stem| stem.to_str()).is_some_and(&is_named) {
                continue;
            }
            let written = entry.metadata().and_then(|metadata| metadata.modified()).map_err(failed)?;
            // A time of the future is from a clock that has been set back since.
            if written.elapsed().unwrap_or_default() >= grace {
                std::fs::remove_file(&path).map_err(|reason| disk(&path, reason))?;
                tracing::info!(path = %path.display(), "deleted a module that no version names");
            }
        }
        Ok(())
    }

    /// A file whose bytes do not have their name's digest is as good as none.
    fn on_disk(&self, wanted: &str) -> Result<Option<Vec<u8>>, ModuleError> {
        let path = self.path(wanted);
        match std::fs::read(&path) {
            Ok(module) if digest(&module) == wanted => Ok(Some(module)),
            Ok(_) => {
                tracing::warn!(path = %path.display(), "module file is damaged; fetching it again");
                Ok(None)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(reason) => Err(disk(&path, reason)),
        }
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.dir.join(format!("{digest}.wasm"))
    }
}

fn from_topic(log: &TopicLog, wanted: &str) -> Result<Vec<u8>, ModuleError> {
    let mut chunks = BTreeMap::new();
    log.tail(Offset(0))?.read_to_end(&mut |record| {
        let key = ChunkKey::parse(&record.key).filter(|key| key.digest == wanted);
        if let (Some(key), Some(chunk)) = (key, record.value) {
            chunks.insert(key.index, chunk);
        }
    })?;
    let module: Vec<u8> = chunks.into_values().flatten().collect();
    // A missing chunk shows in the digest.
    if digest(&module) == wanted {
        return Ok(module);
    }
    Err(ModuleError::Missing { digest: wanted.to_owned() })
}

fn disk(path: &Path, reason: io::Error) -> ModuleError {
    ModuleError::Disk { path: path.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_with_and_without_an_upload_are_read_and_those_of_others_are_not() {
        let key = ChunkKey { digest: "d", index: 1, chunks: 2, upload: "u" };
        assert_eq!(ChunkKey::parse(key.to_string().as_bytes()), Some(key));
        assert_eq!(ChunkKey::parse(b"d/1/2"), Some(ChunkKey { upload: "", ..key }));
        for foreign in [&b"d"[..], b"d/1", b"d/one/2", b"d/1/two/u", b"\xff/1/2/u"] {
            assert_eq!(ChunkKey::parse(foreign), None, "{foreign:?}");
        }
    }

    #[test]
    fn a_damaged_module_file_is_not_trusted() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let modules = ModuleDir::open(dir.path()).expect("opens");
        let name = digest(b"module");
        modules.keep(&name, b"module").expect("keeps");
        assert_eq!(modules.on_disk(&name).expect("reads"), Some(b"module".to_vec()));
        modules.keep(&name, b"modulf").expect("keeps");
        assert_eq!(modules.on_disk(&name).expect("reads"), None);
    }

    #[test]
    fn several_may_keep_the_same_module_at_once() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let modules = ModuleDir::open(dir.path()).expect("opens");
        let name = digest(b"module");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..200).for_each(|_| modules.keep(&name, b"module").expect("keeps")));
            }
        });
        assert_eq!(modules.on_disk(&name).expect("reads"), Some(b"module".to_vec()));
    }

    #[test]
    fn modules_that_nothing_names_go_once_they_are_old() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let modules = ModuleDir::open(dir.path()).expect("opens");
        let (hour, now) = (Duration::from_secs(3600), std::time::SystemTime::now());
        let write = |name: &str, time| {
            let file = std::fs::File::create(dir.path().join(name)).expect("creates");
            file.set_modified(time).expect("sets its time");
        };
        for name in ["named.wasm", "old.wasm", "old.partial", "other"] {
            write(name, now - 2 * hour);
        }
        for (name, time) in [("new.wasm", now), ("future.wasm", now + 2 * hour)] {
            write(name, time);
        }
        modules.tidy(|module| module == "named", hour).expect("tidies");
        let left =
            std::fs::read_dir(dir.path()).expect("lists").map(|entry| entry.expect("lists").file_name());
        let left: std::collections::BTreeSet<_> = left.collect();
        assert_eq!(left, ["future.wasm", "named.wasm", "new.wasm", "other"].map(Into::into).into());
    }
}
