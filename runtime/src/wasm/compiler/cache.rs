//! Compiled code on disk, in a directory that only this node's user can enter.
//!
//! A file (on disk since 0.1; any that does not check out is compiled again):
//!
//! ```text
//! compiled/key                          64 random bytes, made once
//! compiled/<digest>-<engine>.cwasm      HMAC-SHA-256 over the file's name and the code | code
//! ```
//!
//! `engine` is wasmtime's own word for what code must agree on: version, target, settings. The key does
//! not keep out whoever can read this directory, who is this node's user; it keeps out code that got
//! here by other ways (a restored backup, a shared volume, a write through some other hole).

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use wasmtime::Engine;

/// SHA-256's block, which is what HMAC's key is made to fill.
const KEY_BYTES: usize = 64;
const MAC_BYTES: usize = 32;

/// Files that are kept; those go first that nobody has asked for in the longest time.
const FILES_MAX: usize = 256;

pub struct Cache {
    dir: PathBuf,
    key: [u8; KEY_BYTES],
}

impl Cache {
    pub fn open(dir: &Path) -> io::Result<Cache> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        fs::set_permissions(dir, Permissions::from_mode(0o700))?;
        Ok(Cache { dir: dir.to_owned(), key: key(dir)? })
    }

    /// Code that this node compiled for this engine. Anything else is as good as none.
    pub fn get(&self, digest: &str, engine: &Engine) -> Option<Vec<u8>> {
        let name = name(digest, engine);
        let mut file = match fs::read(self.dir.join(&name)) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(%error, name, "compiled code cannot be read; compiling it again");
                return None;
            }
        };
        let known = file.split_at_checked(MAC_BYTES);
        if known.is_none_or(|(mac, code)| self.mac(&name, code).verify_slice(mac).is_err()) {
            tracing::warn!(name, "this compiled code is not this node's own; compiling it again");
            return None;
        }
        file.drain(..MAC_BYTES);
        self.touch(&name);
        Some(file)
    }

    /// The time of a file is that of its last use.
    fn touch(&self, name: &str) {
        let touched = File::open(self.dir.join(name)).and_then(|file| file.set_modified(SystemTime::now()));
        if let Err(error) = touched {
            tracing::debug!(%error, name, "compiled code counts as used longer ago than it was");
        }
    }

    /// A crash half-way leaves a file that does not check out.
    pub fn put(&self, digest: &str, engine: &Engine, code: &[u8]) -> io::Result<()> {
        let name = name(digest, engine);
        let mac = self.mac(&name, code).finalize().into_bytes();
        let partial = self.dir.join(format!("{name}.partial"));
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        file.write_all(&mac)?;
        file.write_all(code)?;
        fs::rename(&partial, self.dir.join(&name))?;
        self.prune()
    }

    fn mac(&self, name: &str, code: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new(&self.key.into());
        mac.update(name.as_bytes());
        mac.update(&[0]);
        mac.update(code);
        mac
    }

    fn prune(&self) -> io::Result<()> {
        let mut files: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if entry.path().extension().is_some_and(|extension| extension == "cwasm") {
                files.push((entry.metadata()?.modified()?, entry.path()));
            }
        }
        files.sort();
        let surplus = files.len().saturating_sub(FILES_MAX);
        files.iter().take(surplus).try_for_each(|(_, path)| fs::remove_file(path))
    }
}

/// The node's key, made at the first start. One of a wrong length is replaced: what it vouched for is
/// compiled again.
fn key(dir: &Path) -> io::Result<[u8; KEY_BYTES]> {
    let path = dir.join("key");
    match fs::read(&path).map(<[u8; KEY_BYTES]>::try_from) {
        Ok(Ok(key)) => return Ok(key),
        Ok(Err(_)) => fs::remove_file(&path)?,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut key = [0; KEY_BYTES];
    File::open("/dev/urandom")?.read_exact(&mut key)?;
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?.write_all(&key)?;
    Ok(key)
}

fn name(digest: &str, engine: &Engine) -> String {
    let mut hasher = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    format!("{digest}-{:016x}.cwasm", hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_of(cache: &Cache, engine: &Engine) -> PathBuf {
        cache.dir.join(name("abc", engine))
    }

    #[test]
    fn code_comes_back_only_if_this_node_put_it_there_under_this_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let (cache, engine) = (Cache::open(dir.path()).expect("opens"), Engine::default());
        assert_eq!(cache.get("abc", &engine), None);
        cache.put("abc", &engine, b"code").expect("puts");
        let again = Cache::open(dir.path()).expect("opens again");
        assert_eq!(again.get("abc", &engine), Some(b"code".to_vec()));

        // Another module's code, an altered byte, a cut file, another node's file.
        fs::copy(file_of(&cache, &engine), dir.path().join(name("other", &engine))).expect("copies");
        assert_eq!(cache.get("other", &engine), None);
        let sound = fs::read(file_of(&cache, &engine)).expect("reads");
        for at in 0..sound.len() {
            let mut altered = sound.clone();
            altered[at] ^= 1;
            fs::write(file_of(&cache, &engine), altered).expect("writes");
            assert_eq!(cache.get("abc", &engine), None, "byte {at}");
            fs::write(file_of(&cache, &engine), &sound[..at]).expect("writes");
            assert_eq!(cache.get("abc", &engine), None, "cut at {at}");
        }
        let elsewhere = tempfile::tempdir().expect("a directory");
        let stranger = Cache::open(elsewhere.path()).expect("opens");
        stranger.put("abc", &engine, b"code").expect("puts");
        fs::copy(file_of(&stranger, &engine), file_of(&cache, &engine)).expect("copies");
        assert_eq!(cache.get("abc", &engine), None);
    }

    #[test]
    fn of_too_many_files_the_one_goes_that_nobody_has_asked_for_in_the_longest_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let (cache, engine) = (Cache::open(dir.path()).expect("opens"), Engine::default());
        let put = |index: usize| cache.put(&index.to_string(), &engine, b"code").expect("puts");
        let long_ago = SystemTime::now() - std::time::Duration::from_secs(3600);
        for index in 0..FILES_MAX {
            put(index);
            let path = dir.path().join(name(&index.to_string(), &engine));
            let time = long_ago + std::time::Duration::from_secs(index as u64);
            File::open(path).and_then(|file| file.set_modified(time)).expect("sets its time");
        }
        assert!(cache.get("0", &engine).is_some());
        put(FILES_MAX);
        assert!(cache.get("0", &engine).is_some() && cache.get("1", &engine).is_none());
        assert!(cache.get("2", &engine).is_some());
    }

    #[test]
    fn nobody_else_may_look_inside() {
        let dir = tempfile::tempdir().expect("a directory");
        Cache::open(&dir.path().join("compiled")).expect("opens");
        let mode = |path: &str| fs::metadata(dir.path().join(path)).expect("there").permissions().mode();
        assert_eq!((mode("compiled") & 0o777, mode("compiled/key") & 0o777), (0o700, 0o600));
    }
}
