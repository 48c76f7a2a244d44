//! A [`Coverage`] as text for people.

use std::fmt;

use super::coverage::Coverage;
use super::part::Sentence;

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Coverage { covered, excused, uncovered, gone, new, .. } = self;
        let of_users = || excused.iter().filter(|excuse| excuse.addresses_user);
        let others = || excused.iter().filter(|excuse| !excuse.addresses_user);

        head(f, "covered", covered.len())?;
        for own in covered {
            sentence(f, &own.sentence)?;
            own.cases.iter().try_for_each(|id| writeln!(f, "        {id}"))?;
        }
        head(f, "for the device's user to keep", of_users().count())?;
        for own in of_users() {
            sentence(f, &own.sentence)?;
            writeln!(f, "        {}", own.reason)?;
            own.cases.iter().try_for_each(|id| writeln!(f, "        {id}"))?;
        }
        head(f, "not testable", others().count())?;
        for own in others() {
            sentence(f, &own.sentence)?;
            writeln!(f, "        {}", own.reason)?;
        }
        head(f, "uncovered", uncovered.len())?;
        uncovered.iter().try_for_each(|own| sentence(f, own))?;
        head(f, "gone, or changed", gone.len())?;
        for own in gone {
            writeln!(f, "        {}", own.text)?;
            own.now.iter().try_for_each(|now| writeln!(f, "   now  {now}"))?;
            own.cases.iter().try_for_each(|id| writeln!(f, "        {id}"))?;
        }
        head(f, "new", new.len())?;
        new.iter().try_for_each(|own| sentence(f, own))?;
        write!(
            f,
            "{} covered, {} for the user, {} not testable, {} uncovered, {} gone or changed, {} new since {}",
            covered.len(),
            of_users().count(),
            others().count(),
            uncovered.len(),
            gone.len(),
            new.len(),
            self.suite_header
        )
    }
}

/// Writes the head of a list, unless it is empty.
fn head(f: &mut fmt::Formatter<'_>, name: &str, count: usize) -> fmt::Result {
    if count == 0 { Ok(()) } else { writeln!(f, "{name}: {count}") }
}

fn sentence(f: &mut fmt::Formatter<'_>, own: &Sentence) -> fmt::Result {
    writeln!(f, "  {:>4}  {}", own.line, own.text)
}
