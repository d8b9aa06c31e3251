//! The numbers of a group, as the `aggregate` handler stores them.

use anyhow::{Context, Result};

/// Departure delays of one group of flights.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Statistics {
    /// Flights that left.
    pub count: u64,
    /// Cancelled flights: counted, not averaged.
    pub missing: u64,
    /// Minutes, over the flights that left; so are the rest.
    pub sum: f64,
    pub min: Option<f64>,
    pub max: Option<f64>,
    pub mean: Option<f64>,
}

impl Statistics {
    /// Reads a value of the handler's store or output.
    pub fn from_json(bytes: &[u8]) -> Result<Statistics> {
        let value: serde_json::Value = serde_json::from_slice(bytes)?;
        let whole = |name: &str| value[name].as_u64().with_context(|| format!("no {name} in {value}"));
        Ok(Statistics {
            count: whole("count")?,
            missing: whole("missing")?,
            sum: value["sum"].as_f64().unwrap_or_default(),
            min: value["min"].as_f64(),
            max: value["max"].as_f64(),
            mean: value["mean"].as_f64(),
        })
    }

    /// Equal up to the last bits of a sum of floating-point numbers.
    pub fn agrees_with(&self, other: &Statistics) -> bool {
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0);
        let both = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => close(a, b),
            (a, b) => a == b,
        };
        self.count == other.count
            && self.missing == other.missing
            && close(self.sum, other.sum)
            && both(self.min, other.min)
            && both(self.max, other.max)
            && both(self.mean, other.mean)
    }
}
