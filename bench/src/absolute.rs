//! Figures of a result file by themselves, as docs/performance.md shows them: `tidemill-bench table --absolute`.
//!
//! One table for each way in which runs are driven, a row for each contender, median (min..max) of its runs; the steps of
//! a load that grows; and of each workload that has a budget what a record costs, the mean of the runs, in columns that
//! sum up: threads to the whole, and what is beneath a thread to that.

use serde_json::Value;

use crate::budget::{self, EXCESS, IN_NO_STEP, Line, OTHERS, Part, WHOLE};
use crate::rounds::Spread;
use crate::table::{LOADED, WORKLOADS};
use crate::threads::{ByThread, ROWS};

/// Title, where it stands in a run, and what it is multiplied by.
type Column = (&'static str, &'static str, f64);

/// What is shown of runs, in the order of the tables. A run is of the last kind whose first figure it has.
const KINDS: [&[Column]; 4] = [
    &[
        ("CPU-s per million", "/cpu_seconds_per_million", 1.0),
        ("1,000 records/s", "/records_per_second", 1e-3),
        ("peak RSS, MiB", "/peak_rss_mib", 1.0),
        ("broker, CPU-s per million", "/broker_cpu_seconds_per_million", 1.0),
    ],
    &[
        ("p50, ms", "/latency_ms/p50", 1.0),
        ("p95", "/latency_ms/p95", 1.0),
        ("p99", "/latency_ms/p99", 1.0),
        ("p99.9", "/latency_ms/p99_9", 1.0),
        ("max", "/latency_ms/max", 1.0),
    ],
    &[
        ("deploy to first output, ms", "/deployed_ms", 1.0),
        ("peak RSS of the node, MiB", "/peak_rss_mib", 1.0),
    ],
    &[
        ("first new output, s", "/first_output_seconds", 1.0),
        ("restored, 1,000 keys/s", "/restored_keys_per_second", 1e-3),
        ("restored, MB/s", "/restored_megabytes_per_second", 1.0),
    ],
];

/// `None` of what is no result.
pub fn tables(results: &Value) -> Option<String> {
    let all = results["contenders"].as_array()?.iter().filter(|entry| entry["tried_only"] != true);
    let (loaded, mut entries): (Vec<&Value>, Vec<&Value>) =
        all.partition(|entry| entry["workload"] == LOADED.name);
    let place = |entry: &Value| WORKLOADS.iter().position(|workload| entry["workload"] == workload.name);
    entries.sort_by_key(|entry| place(entry).unwrap_or(WORKLOADS.len()));
    let mut tables = Vec::new();
    for (number, columns) in KINDS.into_iter().enumerate() {
        let of_kind = entries.iter().filter(|entry| kind(entry) == Some(number));
        let rows: Vec<String> = of_kind.map(|entry| row(entry, columns)).collect::<Option<_>>()?;
        let titles: Vec<&str> = columns.iter().map(|(title, ..)| *title).collect();
        tables.extend(table(&[&["", ""][..], &titles[..]].concat(), rows));
    }
    for entry in loaded {
        let titles = ["records/s", "p50, ms", "p99, ms", "cores", "broker, cores", "peak RSS, MiB"];
        let steps = runs(entry).map(step).collect::<Option<_>>()?;
        tables.extend(table(&titles, steps));
        tables.extend(entry["end"].as_str().map(|end| format!("What gave way: {end}.")));
    }
    for workload in WORKLOADS.iter().filter(|workload| workload.has_budget) {
        let of_it = entries.iter().filter(|entry| entry["workload"] == workload.name);
        let told = of_it.filter_map(|entry| Some((entry["name"].as_str()?, mean(entry)?)));
        let steps = &results["measured"][workload.name]["steps"];
        tables.extend(threads(workload.name, &parts(steps), &told.collect::<Vec<_>>()));
    }
    Some(tables.join("\n\n"))
}

/// `None` without rows.
fn table(titles: &[&str], rows: Vec<String>) -> Option<String> {
    let head = [format!("| {} |", titles.join(" | ")), format!("|{}", "---|".repeat(titles.len()))];
    (!rows.is_empty()).then(|| [head.to_vec(), rows].concat().join("\n"))
}

fn runs(entry: &Value) -> impl Iterator<Item = &Value> {
    entry["runs"].as_array().into_iter().flatten()
}

fn kind(entry: &Value) -> Option<usize> {
    KINDS.iter().rposition(|columns| runs(entry).any(|run| run.pointer(columns[0].1).is_some()))
}

/// What, who, and the figures; a figure that no run has is empty.
fn row(entry: &Value, columns: &[Column]) -> Option<String> {
    let text = |name: &str| entry[name].as_str();
    let (what, who) = (text("kill").or(text("workload"))?, text("name")?);
    let how = text("jvm").map(|jvm| format!(" ({jvm})")).unwrap_or_default();
    let figure = |&(_, at, unit): &Column| {
        let figures = runs(entry).filter_map(|run| Some(run.pointer(at)?.as_f64()? * unit));
        Spread::of(figures).map(|spread| spread.to_string()).unwrap_or_default()
    };
    let figures: Vec<String> = columns.iter().map(figure).collect();
    Some(format!("| {what} | {who}{how} | {} |", figures.join(" | ")))
}

/// A step of a load.
fn step(run: &Value) -> Option<String> {
    let figure = |at: &str| run.pointer(at)?.as_f64();
    let rate = figure("/records_per_second")?;
    let cores = |at: &str| Some(figure(at)? * rate / 1e6);
    Some(format!(
        "| {rate:.0} | {:.1} | {:.1} | {:.2} | {:.2} | {:.0} |",
        figure("/latency_ms/p50")?,
        figure("/latency_ms/p99")?,
        cores("/cpu_seconds_per_million")?,
        cores("/broker_cpu_seconds_per_million")?,
        figure("/peak_rss_mib")?,
    ))
}

/// Nanoseconds of CPU time per record, of each contender: by thread, those in the kernel in brackets, and beneath a
/// thread its steps and what is left of it.
fn threads(workload: &str, steps: &[Part<'_>], contenders: &[(&str, ByThread)]) -> Option<String> {
    let of_one = |(name, mean): &(&str, ByThread)| {
        let taken = steps.iter().filter(|step| budget::takes(workload, name, step.name));
        budget::lines(mean, &taken.copied().collect::<Vec<_>>())
    };
    let budgets: Vec<Vec<Line<'_>>> = contenders.iter().map(of_one).collect();
    let mut rows = Vec::new();
    for place in places(steps) {
        let found: Vec<Option<Line<'_>>> = budgets
            .iter()
            .map(|lines| lines.iter().find(|line| (line.row, line.name) == place).copied())
            .collect();
        // Whoever has it has it at the same depth.
        if let Some(line) = found.iter().flatten().next() {
            let indent = if line.is_beneath { "&emsp;" } else { "" };
            let cells: Vec<String> = found.iter().map(|line| line.map(cell).unwrap_or_default()).collect();
            rows.push(format!("| {indent}{} | {} |", line.name, cells.join(" | ")));
        }
    }
    let title = format!("`{workload}`, ns per record (kernel)");
    let names = contenders.iter().map(|(name, _)| *name);
    table(&[title.as_str()].into_iter().chain(names).collect::<Vec<_>>(), rows)
}

/// What may have a row, in the order of the table: the number of its thread, and its name.
fn places<'a>(steps: &[Part<'a>]) -> Vec<(usize, &'a str)> {
    let mut places = Vec::new();
    for (row, thread) in ROWS.into_iter().enumerate() {
        let taken = steps.iter().filter(|step| step.row == row).map(|step| step.name);
        let names = [thread].into_iter().chain(taken).chain([IN_NO_STEP, EXCESS]);
        places.extend(names.map(|name| (row, name)));
    }
    places.extend([OTHERS, WHOLE].map(|name| (ROWS.len(), name)));
    places
}

fn cell(line: Line<'_>) -> String {
    match line.kernel_ns {
        Some(kernel) => format!("{} ({kernel})", line.ns),
        None => line.ns.to_string(),
    }
}

/// Steps as a result file has them.
fn parts(steps: &Value) -> Vec<Part<'_>> {
    steps.as_array().into_iter().flatten().filter_map(part).collect()
}

fn part(step: &Value) -> Option<Part<'_>> {
    let row = usize::try_from(step["row"].as_u64()?).ok()?;
    Some(Part { name: step["name"].as_str()?, row, ns: step["ns"].as_f64()? })
}

/// Of the runs that tell; `None` if none does.
fn mean(entry: &Value) -> Option<ByThread> {
    let told = runs(entry).map(|run| &run["threads_ns"]).filter(|threads| threads.is_object());
    ByThread::mean(told.map(|threads| {
        let ns = |thread: &str, part: usize| threads[thread][part].as_f64().unwrap_or_default();
        ByThread { rows: ROWS.map(|thread| [ns(thread, 0), ns(thread, 1)]), others: ns("others", 0) }
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_kind_of_run_has_a_table_and_a_budget_has_steps_beneath_threads() {
        let run = |cpu: f64, threads: Value| {
            json!({
                "cpu_seconds_per_million": cpu, "records_per_second": 500_000.0, "peak_rss_mib": 90.0,
                "broker_cpu_seconds_per_million": 0.5, "threads_ns": threads,
            })
        };
        let by_thread = |ns: f64| json!({ "worker": [ns, 10.0], "commit": [50.0, 0.0], "others": [5.0] });
        let waited = json!({
            "cpu_seconds_per_million": 40.0, "records_per_second": 5_000.0, "peak_rss_mib": 45.0,
            "broker_cpu_seconds_per_million": 20.0,
            "latency_ms": { "p50": 20.0, "p95": 30.0, "p99": 40.0, "p99_9": 50.0, "max": 60.0 },
        });
        let results = json!({ "contenders": [
            { "workload": "latency-5k", "name": "tidemill", "tried_only": false, "runs": [waited.clone()] },
            { "workload": "b1-100", "name": "tidemill", "tried_only": false,
              "runs": [run(0.4, by_thread(100.0)), run(0.6, by_thread(300.0))] },
            { "workload": "b1-100", "name": "loop", "tried_only": false,
              "runs": [run(1.0, json!({ "worker": [900.0, 50.0], "others": [-2.0] }))] },
            { "workload": "b1-100", "name": "streams", "jvm": "G1", "tried_only": true, "runs": [run(9.0, json!({}))] },
            { "workload": "load", "name": "tidemill", "tried_only": false, "runs": [waited], "end": "at 9/s late" },
            { "workload": "recovery", "name": "streams", "kill": "1 M keys",
              "runs": [{ "first_output_seconds": 43.0, "restored_keys_per_second": 500_000.0 }] },
        ], "measured": { "b1-100": { "steps": [
            { "name": "take", "row": 0, "ns": 68.4 },
            { "name": "produce", "row": 1, "ns": 62.0 },
            { "name": "handle, natively", "row": 0, "ns": 37.0 },
        ] } } });
        let wanted = "\
|  |  | CPU-s per million | 1,000 records/s | peak RSS, MiB | broker, CPU-s per million |
|---|---|---|---|---|---|
| b1-100 | tidemill | 0.50 (0.40..0.60) | 500 (500..500) | 90.0 (90.0..90.0) | 0.50 (0.50..0.50) |
| b1-100 | loop | 1.00 (1.00..1.00) | 500 (500..500) | 90.0 (90.0..90.0) | 0.50 (0.50..0.50) |

|  |  | p50, ms | p95 | p99 | p99.9 | max |
|---|---|---|---|---|---|---|
| latency-5k | tidemill | 20.0 (20.0..20.0) | 30.0 (30.0..30.0) | 40.0 (40.0..40.0) | 50.0 (50.0..50.0) | 60.0 (60.0..60.0) |

|  |  | first new output, s | restored, 1,000 keys/s | restored, MB/s |
|---|---|---|---|---|
| 1 M keys | streams | 43.0 (43.0..43.0) | 500 (500..500) |  |

| records/s | p50, ms | p99, ms | cores | broker, cores | peak RSS, MiB |
|---|---|---|---|---|---|
| 5000 | 20.0 | 40.0 | 0.20 | 0.10 | 45 |

What gave way: at 9/s late.

| `b1-100`, ns per record (kernel) | tidemill | loop |
|---|---|---|
| worker | 210 (10) | 950 (50) |
| &emsp;take | 68 |  |
| &emsp;handle, natively | 37 |  |
| &emsp;in no step | 105 |  |
| commit | 50 (0) |  |
| &emsp;produce | 62 |  |
| &emsp;less: steps by themselves take more | -12 |  |
| other threads, ended ones, rounding | 5 | -2 |
| in all | 265 | 948 |";
        assert_eq!(tables(&results).expect("a result"), wanted);
        assert_eq!(tables(&json!({})), None);
    }
}
