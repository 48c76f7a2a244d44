//! Rounds in which everything that is compared takes its turn, so that a busy machine disturbs all alike.

/// Something that is measured.
pub(crate) struct Subject<'a> {
    name: String,
    /// Returns the result of one turn.
    turn: Box<dyn FnMut() -> f64 + 'a>,
}

/// The results of all turns.
pub(crate) struct Results(Vec<(String, Vec<f64>)>);

impl<'a> Subject<'a> {
    pub(crate) fn new(name: impl Into<String>, turn: impl FnMut() -> f64 + 'a) -> Subject<'a> {
        Subject { name: name.into(), turn: Box::new(turn) }
    }
}

/// Runs so many rounds, after one that does not count.
pub(crate) fn alternate(rounds: usize, mut subjects: Vec<Subject<'_>>) -> Results {
    let mut results: Vec<_> = subjects.iter().map(|subject| (subject.name.clone(), Vec::new())).collect();
    let count = subjects.len();
    for round in 0..=rounds {
        // None always follows the same other one.
        let (first, step) = (round % count, if round % 2 == 0 { 1 } else { count - 1 });
        for turn in 0..count {
            let index = (first + turn * step) % count;
            let result = (subjects[index].turn)();
            if round > 0 {
                results[index].1.push(result);
            }
        }
    }
    Results(results)
}

impl Results {
    /// Prints the median of each subject, and its ratio to `baseline`: the median of the rounds' ratios.
    pub(crate) fn print(&self, unit: &str, baseline: &str) {
        let (_, base) = self.0.iter().find(|(name, _)| name == baseline).unwrap();
        for (name, results) in &self.0 {
            let ratios = results.iter().zip(base).map(|(result, base)| result / base).collect();
            println!("  {name:<44} {:>9.2} {unit:<12} {:>6.3}", median(results.clone()), median(ratios));
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) {
        f64::midpoint(values[middle - 1], values[middle])
    } else {
        values[middle]
    }
}
