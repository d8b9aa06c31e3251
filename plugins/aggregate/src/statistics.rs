//! The numbers of one group.

use serde::{Deserialize, Serialize};
use tidemill_fields::Number;

/// On disk and on the wire since 0.1, as JSON: add, never rename.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Statistics {
    count: u64,
    missing: u64,
    sum: Amount,
    min: Option<Amount>,
    max: Option<Amount>,
    /// Derived from the others; there for whoever reads the JSON.
    mean: Option<f64>,
}

/// A number as JSON writes it: whole while it is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Amount {
    Whole(i64),
    Real(f64),
}

impl Default for Amount {
    fn default() -> Amount {
        Amount::Whole(0)
    }
}

impl From<Number> for Amount {
    fn from(number: Number) -> Amount {
        match number {
            Number::Whole(whole) => Amount::Whole(whole),
            Number::Real(real) => Amount::Real(real),
        }
    }
}

impl Amount {
    fn as_f64(self) -> f64 {
        match self {
            Amount::Whole(whole) => whole as f64,
            Amount::Real(real) => real,
        }
    }

    /// Exact while both are whole and the sum fits.
    fn plus(self, other: Amount) -> Amount {
        if let (Amount::Whole(a), Amount::Whole(b)) = (self, other)
            && let Some(sum) = a.checked_add(b)
        {
            return Amount::Whole(sum);
        }
        Amount::Real(self.as_f64() + other.as_f64())
    }

    fn is_below(self, other: Amount) -> bool {
        match (self, other) {
            (Amount::Whole(a), Amount::Whole(b)) => a < b,
            (a, b) => a.as_f64() < b.as_f64(),
        }
    }
}

impl Statistics {
    /// Adds a record: its number, or that it has none.
    pub fn add(&mut self, number: Option<Number>) {
        let Some(number) = number.map(Amount::from) else {
            self.missing += 1;
            return;
        };
        self.count += 1;
        self.sum = self.sum.plus(number);
        self.min = Some(self.min.filter(|min| !number.is_below(*min)).unwrap_or(number));
        self.max = Some(self.max.filter(|max| !max.is_below(number)).unwrap_or(number));
        self.mean = Some(self.sum.as_f64() / self.count as f64);
    }
}
