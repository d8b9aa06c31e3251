//! Charts for the documentation: one SVG for each workload, a bar for each contender, and one for each curve, a bar for
//! each of its points; restarts, a bar for each who was killed and each way of it; a load in steps, two bars for each
//! step; and of what another program has measured, a bar for each figure that has the unit of the one that is judged.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::report::{FoundReport, Point, RECOVERY, SurvivorReport};
use crate::rounds::{Figures, Spread};
use crate::suite::{Outcome, Shown};
use crate::table::{LOADED, WORKLOADS};
use crate::terms::{Load, Metric};

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

struct Bar {
    name: String,
    spread: Spread,
    is_ours: bool,
}

/// Draws `DIRECTORY/WORKLOAD.svg`.
pub fn draw(outcome: &Outcome, directory: &Path) -> Result<()> {
    let (unit, metrics): (&str, &[Metric]) = match (outcome.workload.load, outcome.workload.decisive()) {
        (Load::Deploy { .. }, _) => ("milliseconds", &[Metric::Deployed]),
        (Load::Open(_), _) => ("milliseconds, end to end", &[Metric::P50, Metric::P99]),
        (Load::Backlog { .. }, Metric::PeakRss) => ("peak RSS, MiB", &[Metric::PeakRss]),
        (Load::Backlog { .. }, _) => ("CPU-seconds per million records", &[Metric::Cpu]),
    };
    let bar = |shown: &Shown, metric: Metric| {
        let several = metrics.len() > 1;
        let name = shown.contender.name;
        Some(Bar {
            name: if several { format!("{name}, {metric}") } else { name.to_owned() },
            spread: Spread::of(shown.runs.iter().filter_map(|figures| figures.get(metric)))?,
            is_ours: name.starts_with("tidemill"),
        })
    };
    let bars: Vec<Bar> =
        outcome.shown.iter().flat_map(|shown| metrics.iter().filter_map(move |&m| bar(shown, m))).collect();
    save(directory, outcome.workload.name, &format!("{} ({unit})", outcome.workload.title), &bars)
}

/// Draws `DIRECTORY/curve-GROWS.svg`, a bar for each point.
pub fn draw_curve(grows: &str, points: &[Point], directory: &Path) -> Result<()> {
    let bar = |&(name, spread): &Point| Bar { name: name.to_owned(), spread, is_ours: true };
    let bars: Vec<Bar> = points.iter().map(bar).collect();
    let title = format!("tidemill alone, by {grows} (CPU-seconds per million records)");
    save(directory, &format!("curve-{grows}"), &title, &bars)
}

/// Draws `DIRECTORY/load.svg`: of each load that the node has kept up with, how long records have waited.
pub fn draw_load(kept: &[(u64, Figures)], directory: &Path) -> Result<()> {
    let bar = |per_second: u64, figures: &Figures, metric: Metric| {
        let name = format!("{per_second} records/s, {metric}");
        Some(Bar { name, spread: Spread::of(figures.get(metric))?, is_ours: true })
    };
    let both = |(per_second, figures): &(u64, Figures)| {
        [Metric::P50, Metric::P99].map(|metric| bar(*per_second, figures, metric))
    };
    let bars: Vec<Bar> = kept.iter().flat_map(both).flatten().collect();
    let title = format!("{}, as far as the node keeps up (milliseconds, end to end)", LOADED.title);
    save(directory, LOADED.name, &title, &bars)
}

/// Draws `DIRECTORY/WORKLOAD.svg` of what another program has measured: the figure that is judged, and what was measured
/// beside it in the same unit, which is the end of its name.
pub fn draw_found(found: &FoundReport, figure: &str, title: &str, directory: &Path) -> Result<()> {
    let (what, unit) = figure.rsplit_once('_').context("a figure without a unit")?;
    let judged = Spread::of(found.runs.iter().filter_map(|run| run.get(figure).copied()));
    let in_unit = |(name, &figure): (&String, &f64)| {
        let what = name.strip_suffix(unit)?.strip_suffix('_')?.to_owned();
        Some((what, Spread::of([figure])?))
    };
    let beside = found.beside.iter().filter_map(in_unit);
    let all = judged.map(|spread| (what.to_owned(), spread)).into_iter().chain(beside);
    let bar = |(what, spread): (String, Spread)| Bar {
        name: format!("{}, {what}", found.name),
        spread,
        is_ours: true,
    };
    let bars: Vec<Bar> = all.map(bar).collect();
    save(directory, found.workload, title, &bars)
}

/// Draws `DIRECTORY/recovery.svg` and `DIRECTORY/recovery-restored.svg`.
pub fn draw_kills(survivors: &[SurvivorReport], directory: &Path) -> Result<()> {
    let charts = [
        (
            RECOVERY,
            "Restarts: kill -9, after expiry start, to first new output (seconds)",
            Metric::FirstOutput,
            1.0,
        ),
        ("recovery-restored", "Restarts: stores restored (1,000 keys a second)", Metric::RestoredKeys, 1e-3),
    ];
    for (file, title, metric, unit) in charts {
        let bar = |SurvivorReport { name, kill, runs, .. }: &SurvivorReport| {
            let figures = runs.iter().filter_map(|run| Some(run.get(metric)? * unit));
            let is_ours = name.starts_with("tidemill");
            Some(Bar { name: format!("{name}: {kill}"), spread: Spread::of(figures)?, is_ours })
        };
        let bars: Vec<Bar> = survivors.iter().filter_map(bar).collect();
        save(directory, file, title, &bars)?;
    }
    Ok(())
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

/// Draws `DIRECTORY/NAME.svg`.
fn save(directory: &Path, name: &str, title: &str, bars: &[Bar]) -> Result<()> {
    fs::create_dir_all(directory)?;
    // The drawing's errors borrow what is drawn.
    plot(&directory.join(format!("{name}.svg")), title, bars).map_err(|error| anyhow!("{error}"))
}

fn plot(path: &Path, title: &str, bars: &[Bar]) -> Result<(), Box<dyn std::error::Error>> {
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
    use std::collections::BTreeMap;

    use super::*;
    use crate::rounds::Comeback;

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
    fn what_another_program_has_measured_has_a_bar_for_each_figure_in_the_unit_of_the_judged_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let beside = [("rss_kib", 900.0), ("threads", 3.5), ("millicores_idle", 0.5)];
        let found = FoundReport {
            workload: "idle-100",
            name: "tidemill",
            runs: vec![BTreeMap::from([("own_kib", 120.0)])],
            beside: beside.map(|(name, figure)| (name.to_owned(), figure)).into(),
        };
        draw_found(&found, "own_kib", "own memory, KiB", directory.path()).expect("a chart");
        let chart = fs::read_to_string(directory.path().join("idle-100.svg")).expect("a chart");
        for text in ["tidemill, own", "120 (", "tidemill, rss", "900 ("] {
            assert!(chart.contains(text), "{text}: {chart}");
        }
        assert!(!chart.contains("threads") && !chart.contains("millicores"), "{chart}");
    }

    #[test]
    fn kills_have_a_bar_for_each_who_was_killed() {
        let directory = tempfile::tempdir().expect("a directory");
        let comeback = |seconds, keys| Comeback {
            first_output_seconds: seconds,
            rto_ms: seconds * 1e3,
            rpo_ms: Some(0.0),
            records_missing: 0,
            restored_keys_per_second: Some(keys),
            restored_megabytes_per_second: None,
        };
        let kill = || "1 M keys".to_owned();
        let survivor = |name, runs| SurvivorReport { workload: RECOVERY, name, kill: kill(), runs };
        let survivors = [
            survivor("tidemill", vec![comeback(2.0, 500_000.0)]),
            survivor("streams", vec![comeback(43.0, 250_000.0)]),
        ];
        draw_kills(&survivors, directory.path()).expect("charts");
        for (file, figures) in [("recovery", ["2.00", "43.0"]), ("recovery-restored", ["500", "250"])] {
            let chart = fs::read_to_string(directory.path().join(format!("{file}.svg"))).expect(file);
            assert!(chart.contains("streams: 1 M keys"), "{chart}");
            assert!(figures.iter().all(|figure| chart.contains(&format!("{figure} ("))), "{chart}");
        }
    }
}
