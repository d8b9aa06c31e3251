//! The roles of a node that runs. They follow its file, so that nobody has to restart a node to let somebody
//! in, or to keep somebody out.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use super::problem::{Problems, Report};
use super::roles::{self, Grant};
use super::yaml::{self, Yaml};

/// Whoever decides reads them anew each time.
#[derive(Debug)]
pub struct Roles {
    /// `None` = they came from no file, and stay.
    file: Option<PathBuf>,
    grants: RwLock<Arc<[Grant]>>,
}

impl Roles {
    pub fn new(grants: Vec<Grant>, file: Option<PathBuf>) -> Roles {
        Roles { file, grants: RwLock::new(grants.into()) }
    }

    /// Where they are read again.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    pub fn grants(&self) -> Arc<[Grant]> {
        Arc::clone(&self.grants.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the file again; true if it says something else now. What cannot be read leaves everything as it is.
    pub fn refresh(&self) -> Result<bool, String> {
        let Some(file) = &self.file else { return Ok(false) };
        let shown = file.display();
        let text = fs::read_to_string(file).map_err(|error| format!("{shown} cannot be read: {error}"))?;
        let grants = read(&text).map_err(|problems| format!("{shown}: {problems}"))?;
        if *self.grants() == grants {
            return Ok(false);
        }
        *self.grants.write().unwrap_or_else(PoisonError::into_inner) = grants.into();
        Ok(true)
    }
}

/// The list in a node's file; the rest of it counts from the next start on.
fn read(text: &str) -> Result<Vec<Grant>, Problems> {
    let report = Report::default();
    let documents = yaml::documents(text, &report)?;
    let list = documents.first().and_then(|document| match &document.value {
        Yaml::Map(entries) => entries.iter().find(|(key, _)| key.name == "roles"),
        _ => None,
    });
    let Some((key, list)) = list else {
        return Err(Problems::one("roles", "is gone; without it nobody may do anything"));
    };
    let grants = roles::read(list, key.line, &report).into_iter().map(|(_, grant)| grant).collect();
    report.finish(Some(grants))
}

#[cfg(test)]
mod tests {
    use super::super::roles::{Name, Role, Scope};
    use super::*;

    #[test]
    fn roles_follow_their_file_and_stay_while_it_cannot_be_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("node.yaml");
        let write = |text: &str| fs::write(&file, text).expect("it is written");
        let one = "fleet: a\nroles:\n  - { san: one.test, role: admin }\n";
        write(one);
        let roles = Roles::new(read(one).expect("roles"), Some(file.clone()));
        assert_eq!(roles.refresh(), Ok(false));
        let may = |name| !Scope::of(&roles.grants(), &[Name::parse(name)], Role::Admin).is_none();
        assert!(may("one.test") && !may("two.test"));

        for (text, says) in [
            ("fleet: a\n", "roles: is gone"),
            ("roles:\n  - { san: two.test, role: root }\n", "unknown value `root`"),
            ("roles: [\n", "node.yaml"),
        ] {
            write(text);
            let refused = roles.refresh().expect_err(text);
            assert!(refused.contains(says), "{refused}");
        }
        assert!(may("one.test"), "what was right before stays");

        write("roles:\n  - { san: two.test, role: admin }\n");
        assert_eq!(roles.refresh(), Ok(true));
        assert!(may("two.test") && !may("one.test"));
        fs::remove_file(&file).expect("it is deleted");
        assert!(roles.refresh().is_err() && may("two.test"));
    }
}
