//! Scenes of a program, played one after the other: `make outbox`, `make poison`.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

/// What a scene has found, or several of them.
pub trait Findings: fmt::Display + Default {
    /// Of a scene that panicked, which has told what it waited for.
    fn of_early_end(scene: &str) -> Self;

    fn add(&mut self, other: Self);

    fn is_good(&self) -> bool;

    /// What people are told of it, beside its figures; a line each.
    fn lines(&self) -> Vec<String>;
}

/// A scene by its name.
pub type Scene<'a, F> = (&'a str, Box<dyn Fn() -> F + 'a>);

/// Plays those whose name has `only` in it. The last line is `program: figures`; the exit code is 0 if all is good.
pub fn play<F: Findings>(program: &str, scenes: Vec<Scene<'_, F>>, only: Option<&str>) -> ExitCode {
    let mut total = F::default();
    for (name, scene) in scenes {
        if only.is_some_and(|only| !name.contains(only)) {
            continue;
        }
        let started = Instant::now();
        let found = catch_unwind(AssertUnwindSafe(&*scene)).unwrap_or_else(|_| F::of_early_end(name));
        for line in found.lines() {
            println!("  {line}");
        }
        println!("  {name}: {found}, took {:.0?}", started.elapsed());
        total.add(found);
    }
    println!("{program}: {total}");
    if total.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
