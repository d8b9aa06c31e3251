//! Charts for the documentation, of what a result file has: one SVG for each workload, a bar for each contender; one for
//! each curve, a bar for each of its points; restarts, a bar for each who was killed and each way of it; a load in steps,
//! two bars for each step; and of what another program has measured, a bar for each figure that has the unit of the one
//! that is judged. A figure that the file does not have has no bar, and a chart without bars is not drawn.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde_json::Value;

use crate::report::{RECOVERY, full_name};
use crate::rounds::Spread;
use crate::saturation::LATE_MS;
use crate::table::{ELSEWHERE, LOADED, WORKLOADS};
use crate::terms::{Load, Metric, Ratio, Workload};

const WIDTH: u32 = 760;
const BAR_HEIGHT: u32 = 34;
/// Caption and axis.
const REST_HEIGHT: u32 = 90;
/// At least; longer names make a chart wider.
const NAMES_WIDTH: u32 = 190;
const LETTER_WIDTH: u32 = 7;
/// Between a bar and what stands beside it, in pixels.
const GAP: i32 = 8;
const OURS: RGBColor = RGBColor(0x1f, 0x77, 0x8d);
const OTHERS: RGBColor = RGBColor(0xb4, 0xb9, 0xbd);
const INK: RGBColor = RGBColor(0x33, 0x33, 0x33);

struct Chart {
    /// Of its file, without the extension.
    name: String,
    title: String,
    bars: Vec<Bar>,
}

struct Bar {
    name: String,
    spread: Spread,
    is_ours: bool,
}

/// What is read off a run: what a bar's name ends with, where it stands, and what it is multiplied by.
type Figure = (&'static str, &'static str, f64);
const CPU: Figure = ("", "/cpu_seconds_per_million", 1.0);
/// Of a step of a load.
const LOADS: [&str; 3] = ["/records_per_second", "/latency_ms/p50", "/latency_ms/p99"];

/// Draws `DIRECTORY/NAME.svg` for everything that a result file has figures of, in the place of what was there.
pub fn draw(results: &Value, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)?;
    for chart in charts(results) {
        // The drawing's errors borrow what is drawn.
        plot(&directory.join(format!("{}.svg", chart.name)), &chart).map_err(|error| anyhow!("{error}"))?;
    }
    Ok(())
}

fn charts(results: &Value) -> Vec<Chart> {
    let alone = WORKLOADS.iter().filter(|workload| workload.curve.is_none());
    let mut charts: Vec<Chart> = alone.map(|workload| of_workload(results, workload)).collect();
    let curves: BTreeSet<&str> = WORKLOADS.iter().filter_map(|workload| workload.curve).collect();
    charts.extend(curves.into_iter().filter_map(|grows| of_curve(results, grows)));
    charts.extend(of_kills(results));
    charts.push(of_load(results));
    let found =
        |&(workload, figure, ratio): &(&str, &str, Ratio)| of_found(results, (workload, figure), &ratio);
    charts.extend(ELSEWHERE.iter().filter_map(found));
    charts.retain(|chart| !chart.bars.is_empty());
    charts
}

fn of_workload(results: &Value, workload: &Workload) -> Chart {
    let (unit, figures): (&str, &[Figure]) = match (workload.load, workload.decisive()) {
        (Load::Deploy { .. }, _) => ("milliseconds", &[("", "/deployed_ms", 1.0)]),
        (Load::Open(_), _) => (
            "milliseconds, end to end",
            &[(", p50", "/latency_ms/p50", 1.0), (", p99", "/latency_ms/p99", 1.0)],
        ),
        (Load::Backlog { .. }, Metric::PeakRss) => ("peak RSS, MiB", &[("", "/peak_rss_mib", 1.0)]),
        (Load::Backlog { .. }, _) => ("CPU-seconds per million records", &[CPU]),
    };
    let mut bars = Vec::new();
    for entry in entries(results, workload.name) {
        bars.extend(figures.iter().filter_map(|&figure| bar(entry, figure)));
    }
    Chart { name: workload.name.to_owned(), title: format!("{} ({unit})", workload.title), bars }
}

/// A bar for each point; `None` unless all of them were measured by one command, because what is compared takes turns.
fn of_curve(results: &Value, grows: &str) -> Option<Chart> {
    let points = || WORKLOADS.iter().filter(move |workload| workload.curve == Some(grows));
    let how = |workload: &Workload| &results["measured"][workload.name];
    let first = how(points().next()?);
    if first.is_null() || points().any(|point| how(point) != first) {
        return None;
    }
    let of_point = |point: &Workload| {
        let measured = bar(entries(results, point.name).next()?, CPU)?;
        Some(Bar { name: point.name.to_owned(), ..measured })
    };
    let bars = points().map(of_point).collect::<Option<_>>()?;
    let title = format!("tidemill alone, by {grows} (CPU-seconds per million records)");
    Some(Chart { name: format!("curve-{grows}"), title, bars })
}

/// Of each load that the node has kept up with, how long records have waited.
fn of_load(results: &Value) -> Chart {
    let mut bars = Vec::new();
    for run in entries(results, LOADED.name).flat_map(runs) {
        let [Some(per_second), Some(p50), Some(p99)] = LOADS.map(|at| run.pointer(at)?.as_f64()) else {
            continue;
        };
        if p99 <= LATE_MS {
            bars.extend([("p50", p50), ("p99", p99)].map(|(share, ms)| Bar {
                name: format!("{per_second:.0} records/s, {share}"),
                spread: Spread { median: ms, min: ms, max: ms },
                is_ours: true,
            }));
        }
    }
    let title = format!("{}, as far as the node keeps up (milliseconds, end to end)", LOADED.title);
    Chart { name: LOADED.name.to_owned(), title, bars }
}

/// The figure that is judged, and what was measured beside it in the same unit, which is the end of its name.
fn of_found(results: &Value, (workload, figure): (&str, &str), ratio: &Ratio) -> Option<Chart> {
    let (what, unit) = figure.rsplit_once('_')?;
    let mut bars = Vec::new();
    let mut add = |what: &str, spread: Option<Spread>| {
        let name = format!("{}, {what}", ratio.over);
        bars.extend(spread.map(|spread| Bar { name, spread, is_ours: true }));
    };
    for entry in entries(results, workload) {
        add(what, spread(entry, &format!("/{figure}"), 1.0));
        for (name, figure) in entry["beside"].as_object().into_iter().flatten() {
            if let Some(what) = name.strip_suffix(unit).and_then(|what| what.strip_suffix('_')) {
                add(what, Spread::of(figure.as_f64()));
            }
        }
    }
    let title = full_name(workload, ratio.name, &ratio.metric.to_string());
    Some(Chart { name: workload.to_owned(), title, bars })
}

/// How long those who were killed stayed silent, and how fast they had their stores back.
fn of_kills(results: &Value) -> [Chart; 2] {
    let chart = |name: &str, title: &str, at: &str, unit: f64| {
        let of_kill = |entry: &Value| {
            let (who, kill) = (entry["name"].as_str()?, entry["kill"].as_str()?);
            let spread = spread(entry, at, unit)?;
            Some(Bar { name: format!("{who}: {kill}"), spread, is_ours: is_ours(who) })
        };
        let bars = entries(results, RECOVERY).filter_map(of_kill).collect();
        Chart { name: name.to_owned(), title: title.to_owned(), bars }
    };
    [
        chart(
            RECOVERY,
            "Restarts: kill -9, after expiry start, to first new output (seconds)",
            "/first_output_seconds",
            1.0,
        ),
        chart(
            "recovery-restored",
            "Restarts: stores restored (1,000 keys a second)",
            "/restored_keys_per_second",
            1e-3,
        ),
    ]
}

/// Who was measured in a workload, but for what was tried before its rounds.
fn entries<'a>(results: &'a Value, workload: &'a str) -> impl Iterator<Item = &'a Value> {
    let all = results["contenders"].as_array().into_iter().flatten();
    all.filter(move |entry| entry["workload"] == workload && entry["tried_only"] != true)
}

fn runs(entry: &Value) -> impl Iterator<Item = &Value> {
    entry["runs"].as_array().into_iter().flatten()
}

/// Of one figure of all runs; `None` if none has it.
fn spread(entry: &Value, at: &str, unit: f64) -> Option<Spread> {
    Spread::of(runs(entry).filter_map(|run| Some(run.pointer(at)?.as_f64()? * unit)))
}

fn bar(entry: &Value, (what, at, unit): Figure) -> Option<Bar> {
    let name = entry["name"].as_str()?;
    Some(Bar { name: format!("{name}{what}"), spread: spread(entry, at, unit)?, is_ours: is_ours(name) })
}

fn is_ours(contender: &str) -> bool {
    contender.starts_with("tidemill")
}

/// The charts of a directory, in the order of the table, as docs/performance.md shows them.
pub fn links(directory: &Path) -> Result<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "svg") {
            names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    let place = |name: &str| WORKLOADS.iter().position(|workload| workload.name == name);
    names.sort_by_key(|name: &String| (place(name).unwrap_or(WORKLOADS.len()), name.clone()));
    let links: Vec<String> = names.iter().map(|name| format!("![{name}](charts/{name}.svg)")).collect();
    Ok(links.join("\n"))
}

fn plot(path: &Path, chart: &Chart) -> Result<(), Box<dyn std::error::Error>> {
    let Chart { title, bars, .. } = chart;
    let count = u32::try_from(bars.len())?;
    let letters = bars.iter().map(|bar| bar.name.chars().count()).max().unwrap_or_default();
    let names_width = NAMES_WIDTH.max(u32::try_from(letters)? * LETTER_WIDTH);
    let width = WIDTH - NAMES_WIDTH + names_width;
    let root = SVGBackend::new(path, (width, count * BAR_HEIGHT + REST_HEIGHT)).into_drawing_area();
    root.fill(&WHITE)?;
    let longest = bars.iter().map(|bar| bar.spread.max).fold(0.0, f64::max);
    let ink = |size: u32| ("sans-serif", size).into_font().color(&INK);
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ink(15))
        .margin(8)
        .x_label_area_size(30)
        .y_label_area_size(names_width)
        // Room for the figure beside the longest bar.
        .build_cartesian_2d(0.0..longest * 1.3, 0.0..f64::from(count))?;
    chart.configure_mesh().disable_y_mesh().x_max_light_lines(1).y_labels(0).label_style(ink(13)).draw()?;
    let left = ink(13).pos(Pos::new(HPos::Right, VPos::Center));
    let right = ink(13).pos(Pos::new(HPos::Left, VPos::Center));
    for (number, bar) in (0..count).zip(bars) {
        let Spread { median, min, max } = bar.spread;
        // The first contender at the top.
        let middle = f64::from(count - number) - 0.5;
        let color = if bar.is_ours { OURS } else { OTHERS };
        chart
            .draw_series([Rectangle::new([(0.0, middle - 0.35), (median, middle + 0.35)], color.filled())])?;
        chart.draw_series([PathElement::new([(min, middle), (max, middle)], INK)])?;
        let name = Text::new(bar.name.clone(), (-GAP, 0), left.clone());
        chart.draw_series([EmptyElement::at((0.0, middle)) + name])?;
        let figure = Text::new(bar.spread.to_string(), (GAP, 0), right.clone());
        chart.draw_series([EmptyElement::at((max, middle)) + figure])?;
    }
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What a chart shows: its bars' names, with their medians.
    fn bars(results: &Value, name: &str) -> Vec<(String, f64)> {
        let drawn = charts(results);
        let found: Vec<&Chart> = drawn.iter().filter(|chart| chart.name == name).collect();
        assert!(found.len() < 2, "{name} is drawn twice");
        let bars = found.into_iter().flat_map(|chart| &chart.bars);
        bars.map(|bar| (bar.name.clone(), bar.spread.median)).collect()
    }

    fn named<const N: usize>(bars: [(&str, f64); N]) -> Vec<(String, f64)> {
        bars.map(|(name, median)| (name.to_owned(), median)).into()
    }

    #[test]
    fn charts_are_shown_in_the_order_of_the_table_and_others_after_them() {
        let directory = tempfile::tempdir().expect("a directory");
        for name in ["recovery.svg", "deploy.svg", "b1-100.svg", "notes.txt"] {
            fs::write(directory.path().join(name), "").expect("a file");
        }
        let wanted = ["b1-100", "deploy", "recovery"].map(|name| format!("![{name}](charts/{name}.svg)"));
        assert_eq!(links(directory.path()).expect("a directory"), wanted.join("\n"));
    }

    #[test]
    fn what_a_result_file_has_is_drawn_without_a_run_and_nothing_else() {
        let directory = tempfile::tempdir().expect("a directory");
        let run = |cpu: f64| json!({ "cpu_seconds_per_million": cpu });
        let results = json!({ "contenders": [
            { "workload": "b2", "name": "tidemill", "tried_only": false, "runs": [run(0.2), run(0.3), run(0.4)] },
            { "workload": "b2", "name": "streams", "tried_only": true, "runs": [run(9.0)] },
            { "workload": "b2", "name": "streams", "tried_only": false, "runs": [run(1.5)] },
            { "workload": "of before", "name": "tidemill", "tried_only": false, "runs": [run(1.0)] },
        ] });
        draw(&results, directory.path()).expect("charts");
        let files = fs::read_dir(directory.path()).expect("a directory").count();
        assert_eq!(files, 1);
        let chart = fs::read_to_string(directory.path().join("b2.svg")).expect("a chart");
        for text in ["tidemill", "0.30 (0.20..0.40)", "streams", "1.50 (1.50..1.50)"] {
            assert!(chart.contains(text), "{text}: {chart}");
        }
    }

    #[test]
    fn the_points_of_a_curve_are_drawn_if_one_command_has_measured_them_all() {
        let names = ["curve-1-partition", "curve-4-partitions", "curve-16-partitions"];
        let entry = |name: &str| {
            let run = json!({ "cpu_seconds_per_million": 0.5 });
            json!({ "workload": name, "name": "tidemill", "tried_only": false, "runs": [run] })
        };
        let mut results = json!({ "contenders": names.map(entry), "measured": {} });
        for name in names {
            assert_eq!(bars(&results, "curve-partitions"), named([]));
            results["measured"][name] = json!({ "command": "make bench WORKLOAD=curve" });
        }
        assert_eq!(bars(&results, "curve-partitions"), named(names.map(|name| (name, 0.5))));
        results["measured"]["curve-4-partitions"]["command"] = "another".into();
        assert_eq!(bars(&results, "curve-partitions"), named([]));
    }

    #[test]
    fn what_another_program_has_measured_has_a_bar_for_each_figure_in_the_unit_of_the_judged_one() {
        let results = json!({ "contenders": [{
            "workload": "idle-100", "name": "tidemill", "runs": [{ "own_kib": 120.0 }],
            "beside": { "millicores_idle": 0.5, "rss_kib": 900.0, "threads": 3.5 },
        }] });
        let wanted = named([("tidemill, own", 120.0), ("tidemill, rss", 900.0)]);
        assert_eq!(bars(&results, "idle-100"), wanted);
    }

    #[test]
    fn kills_have_a_bar_for_each_who_was_killed() {
        let entry = |name: &str, seconds: f64, keys: f64| {
            json!({
                "workload": RECOVERY, "name": name, "kill": "1 M keys",
                "runs": [{ "first_output_seconds": seconds, "restored_keys_per_second": keys }],
            })
        };
        let both = [entry("tidemill", 2.0, 500_000.0), entry("streams", 43.0, 250_000.0)];
        let results = json!({ "contenders": both });
        let of_both = |ours, theirs| named([("tidemill: 1 M keys", ours), ("streams: 1 M keys", theirs)]);
        assert_eq!(bars(&results, RECOVERY), of_both(2.0, 43.0));
        assert_eq!(bars(&results, "recovery-restored"), of_both(500.0, 250.0));
    }

    #[test]
    fn a_load_has_two_bars_for_each_step_that_was_kept_up_with() {
        let step = |rate: f64, p99: f64| {
            let latency = json!({ "p50": 20.0, "p99": p99 });
            json!({ "records_per_second": rate, "latency_ms": latency })
        };
        let runs = [step(1_000.0, 30.0), step(4_999.6, 40.0), step(10_000.0, LATE_MS + 1.0)];
        let results = json!({ "contenders": [{ "workload": "load", "name": "tidemill", "runs": runs }] });
        let wanted = named([
            ("1000 records/s, p50", 20.0),
            ("1000 records/s, p99", 30.0),
            ("5000 records/s, p50", 20.0),
            ("5000 records/s, p99", 40.0),
        ]);
        assert_eq!(bars(&results, "load"), wanted);
    }
}
