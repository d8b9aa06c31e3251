//! The settings of a topic, as the brokers have them: looked at, and changed one by one.

use std::collections::BTreeMap;
use std::time::Instant;

use super::admin::{Admin, AdminError, REQUEST_WAIT, once_known, sorted, topic_text};
pub use super::ffi::topic_settings::{SettingChange, TopicSetting};
use super::{ASK_EVERY, KNOWN_WAIT};

impl TopicSetting {
    /// Whether that is its value, however it is written: `compact, delete` or `compact,delete`, `1` or `1.0`.
    pub fn is(&self, value: &str) -> bool {
        let words = |text: &str| text.split(',').map(str::trim).collect::<Vec<_>>().join(",");
        let number = |text: &str| text.trim().parse::<f64>().ok();
        match (self.value.parse::<i64>(), value.parse::<i64>()) {
            (Ok(is), Ok(value)) => is == value,
            _ => match (number(&self.value), number(value)) {
                (Some(is), Some(value)) => is == value,
                _ => words(&self.value) == words(value),
            },
        }
    }
}

/// Values of settings by their names.
pub(super) fn by_name(settings: Vec<TopicSetting>) -> BTreeMap<String, String> {
    settings.into_iter().map(|setting| (setting.name, setting.value)).collect()
}

impl Admin {
    /// A topic's settings, defaults included.
    pub fn topic_settings(&self, name: &str) -> Result<Vec<TopicSetting>, AdminError> {
        Ok(self.settings_of(&[name])?.into_iter().next().map(|(_, settings)| settings).unwrap_or_default())
    }

    /// The same as names and values.
    pub fn topic_configs(&self, name: &str) -> Result<BTreeMap<String, String>, AdminError> {
        self.topic_settings(name).map(by_name)
    }

    /// The same of several topics, each named once, in one request.
    pub fn configs_by_topic(
        &self,
        names: &[&str],
    ) -> Result<BTreeMap<String, BTreeMap<String, String>>, AdminError> {
        let found = self.settings_of(names)?;
        Ok(found.into_iter().map(|(name, settings)| (name, by_name(settings))).collect())
    }

    fn settings_of(&self, names: &[&str]) -> Result<Vec<(String, Vec<TopicSetting>)>, AdminError> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let what = || names.iter().map(|name| topic_text(name)).collect::<Vec<_>>().join(", ");
        let answer = self.client().describe_settings(names, REQUEST_WAIT);
        let found = answer.map_err(|error| sorted(&what(), &error))?;
        found
            .into_iter()
            .map(|(name, settings)| match settings {
                Ok(settings) => Ok((name, settings)),
                Err(error) => Err(sorted(&topic_text(&name), &error)),
            })
            .collect()
    }

    /// The settings of a topic that was described a moment ago, perhaps by another broker than the one asked now.
    pub fn known_settings(&self, name: &str) -> Result<Vec<TopicSetting>, AdminError> {
        once_known(name, || match self.topic_settings(name) {
            Err(AdminError::Missing { .. }) => Ok(None),
            answer => answer.map(Some),
        })
    }

    /// Asks whether settings could be changed, without changing them: why not, if they could not.
    pub fn could_alter(&self, topic: &str, changes: &[SettingChange]) -> Result<Option<String>, AdminError> {
        let answer = self.client().alter_settings(topic, changes, true, REQUEST_WAIT);
        match answer.map_err(|error| sorted(&topic_text(topic), &error)) {
            Ok(()) => Ok(None),
            Err(AdminError::Refused { reason, .. }) => Ok(Some(reason)),
            Err(error) => Err(error),
        }
    }

    /// Changes settings, and gives the brokers some time to show it: whoever looks next is to see it.
    pub fn alter_settings(&self, topic: &str, changes: &[SettingChange]) -> Result<(), AdminError> {
        let answer = self.client().alter_settings(topic, changes, false, REQUEST_WAIT);
        answer.map_err(|error| sorted(&topic_text(topic), &error))?;
        let deadline = Instant::now() + KNOWN_WAIT;
        while !self.shows(topic, changes)? && Instant::now() < deadline {
            std::thread::sleep(ASK_EVERY);
        }
        Ok(())
    }

    fn shows(&self, topic: &str, changes: &[SettingChange]) -> Result<bool, AdminError> {
        let settings = self.topic_settings(topic)?;
        Ok(changes.iter().all(|(name, value)| {
            let setting = settings.iter().find(|setting| setting.name == *name);
            setting.is_some_and(|setting| match value {
                Some(value) => setting.own && setting.is(value),
                None => !setting.own,
            })
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_the_same_however_it_is_written() {
        let is = |value: &str, other: &str| {
            TopicSetting { name: "a".into(), value: value.into(), own: true }.is(other)
        };
        assert!(is("compact,delete", "compact, delete") && is("0.5", ".50") && is("1.0", "1"));
        assert!(is("604800000", "604800000") && is("producer", "producer") && is("", ""));
        assert!(!is("9223372036854775807", "9223372036854775806"), "a float would not tell them apart");
        assert!(!is("compact", "compact,delete") && !is("-1", "1") && !is("", "0"));
    }
}
