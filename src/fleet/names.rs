//! Many names in few words: "gpu-001 to gpu-509".

use std::cmp::Ordering;

/// More runs of names than these are only counted.
const MOST_RUNS: usize = 4;
/// A run of fewer names than these is written out.
const SHORTEST_RUN: usize = 3;

/// A name as its start and the number at its end, which has so many digits.
fn split(name: &str) -> (&str, Option<u64>, usize) {
    let start = name.trim_end_matches(|next: char| next.is_ascii_digit());
    let digits = name.get(start.len()..).unwrap_or_default();
    (start, digits.parse().ok(), digits.len())
}

/// "gpu-9" before "gpu-10".
pub fn compare(one: &str, other: &str) -> Ordering {
    split(one).cmp(&split(other)).then_with(|| one.cmp(other))
}

/// The names in few words; they are sorted as [`compare`] says.
pub fn short(names: &[String]) -> String {
    let mut runs: Vec<&[String]> = Vec::new();
    let mut rest = names;
    while !rest.is_empty() {
        let follow = |pair: &&[String]| follows(&pair[0], &pair[1]);
        let length = 1 + rest.windows(2).take_while(follow).count();
        let length = if length < SHORTEST_RUN { 1 } else { length };
        let (run, after) = rest.split_at(length);
        runs.push(run);
        rest = after;
    }
    let shown = &runs[..runs.len().min(MOST_RUNS)];
    let word = |run: &&[String]| match run {
        [first, .., last] => format!("{first} to {last}"),
        names => names.concat(),
    };
    let text = shown.iter().map(word).collect::<Vec<_>>().join(", ");
    match names.len() - shown.iter().map(|run| run.len()).sum::<usize>() {
        0 => text,
        more => format!("{text} and {more} more"),
    }
}

/// Whether a name is the one after another: numbers have the same number of digits, or no leading zeros.
fn follows(one: &str, other: &str) -> bool {
    let ((start, number, digits), (other_start, other_number, other_digits)) = (split(one), split(other));
    let padded =
        |text: &str, digits: usize| digits > 1 && text.get(text.len() - digits..).is_some_and(|d| d.starts_with('0'));
    let same_width = digits == other_digits || !(padded(one, digits) || padded(other, other_digits));
    let next = number.and_then(|number| number.checked_add(1));
    start == other_start && same_width && next.is_some() && next == other_number
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short_of(names: &[&str]) -> String {
        let mut names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        names.sort_by(|one, other| compare(one, other));
        short(&names)
    }

    #[test]
    fn names_that_follow_each_other_are_a_run() {
        assert_eq!(short_of(&[]), "");
        assert_eq!(short_of(&["a"]), "a");
        assert_eq!(short_of(&["gpu-2", "gpu-1"]), "gpu-1, gpu-2");
        assert_eq!(short_of(&["gpu-10", "gpu-8", "gpu-9", "login"]), "gpu-8 to gpu-10, login");
        assert_eq!(short_of(&["n08", "n09", "n10", "n12"]), "n08 to n10, n12");
        // Not the same machines as n1 to n3.
        assert_eq!(short_of(&["n01", "n2", "n3"]), "n01, n2, n3");
        assert_eq!(short_of(&["a", "b", "c", "d", "e", "f"]), "a, b, c, d and 2 more");
        let many: Vec<String> = (1..=509).map(|number| format!("gpu-{number:03}")).collect();
        assert_eq!(short(&many), "gpu-001 to gpu-509");
        assert_eq!(
            short_of(&["x18446744073709551615", "x18446744073709551616"]),
            "x18446744073709551616, x18446744073709551615"
        );
    }
}
