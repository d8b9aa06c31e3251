//! W1: money is neither made nor lost on its way through two deployments.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;

use super::Verdict;
use super::state::Model;
use crate::evidence::{Evidence, Row};

/// Holds `entries` and `ledger` against the transfers; answers what the store must hold.
pub fn check(evidence: &Evidence, transfers: &[Row], verdict: &mut Verdict) -> Result<Model> {
    // Account and `ID,DELTA` of every entry there must be.
    let mut due: HashMap<(String, String), i64> = HashMap::new();
    let mut wrong = Vec::new();
    for row in transfers {
        let (id, value) = (row.key_text(), row.value_text());
        let parts: Vec<&str> = value.split(',').collect();
        let &[from, to, amount] = parts.as_slice() else {
            verdict.invalid.push(format!("{id}={value} is no transfer"));
            continue;
        };
        let amount: i64 = amount.parse()?;
        for (account, delta) in [(from, -amount), (to, amount)] {
            due.insert((account.to_owned(), format!("{id},{delta}")), 0);
        }
    }
    let entries = evidence.topic("entries", true)?;
    for row in &entries {
        match due.get_mut(&(row.key_text(), row.value_text())) {
            Some(times) => *times += 1,
            None => wrong.push(format!("{}={} belongs to no transfer", row.key_text(), row.value_text())),
        }
    }
    for ((account, entry), times) in due.iter().filter(|(_, times)| **times != 1) {
        wrong.push(format!("{account}={entry} was entered {times} times"));
    }
    let model = ledger(&entries, &evidence.topic("ledger", true)?, &mut wrong)?;
    let sum: i64 = model.values().map(|(_, balance)| balance).sum();
    if sum != 0 {
        wrong.push(format!("the balances add up to {sum}, not 0"));
    }
    verdict.violations("W1", wrong);
    verdict.notes.push(format!("W1: {} transfers between {} accounts", transfers.len(), model.len()));
    let rows = model.into_iter().map(|(account, (partition, balance))| {
        ((partition, account.into_bytes()), balance.to_le_bytes().to_vec())
    });
    Ok(rows.collect())
}

/// The booked lines of an account are its entries in order, each with the balance after it.
fn ledger(entries: &[Row], booked: &[Row], wrong: &mut Vec<String>) -> Result<BTreeMap<String, (i32, i64)>> {
    let mut balances: BTreeMap<String, (i32, i64)> = BTreeMap::new();
    let mut expected: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for row in entries {
        let (account, entry) = (row.key_text(), row.value_text());
        let delta: i64 = entry.rsplit(',').next().unwrap_or_default().parse()?;
        let balance = balances.entry(account.clone()).or_insert((row.partition, 0));
        balance.1 += delta;
        expected.entry(account).or_default().push(format!("{entry},{}", balance.1));
    }
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for row in booked {
        found.entry(row.key_text()).or_default().push(row.value_text());
    }
    for (account, expected) in &expected {
        let found = found.remove(account).unwrap_or_default();
        let length = expected.len().max(found.len());
        if let Some(at) = (0..length).find(|&at| expected.get(at) != found.get(at)) {
            let (wanted, got) = (expected.get(at), found.get(at));
            wrong.push(format!("{account}, line {at} of the ledger: expected {wanted:?}, found {got:?}"));
        }
    }
    wrong.extend(found.keys().map(|account| format!("{account} is booked and has no entry")));
    Ok(balances)
}
