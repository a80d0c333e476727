//! What a store of records can know: when somebody was watching, and what was lost meanwhile.

/// A stretch of time in which flows were recorded without a break, in microseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Span {
    /// Its beginning.
    pub from: u64,
    /// Its end, or when it was last known to go on.
    pub until: u64,
}

/// What was seen of a stretch of time.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    /// When flows were recorded, in order and apart; what space cost the oldest of is not in it.
    pub spans: Vec<Span>,
    /// Records that were not kept: no room, or a disk that could not be written.
    pub left_out: u64,
    /// Logged packets that the daemon did not get or did not look at.
    pub lost_packets: u64,
    /// How often events of connection tracking were lost, nobody knows how many each time.
    pub lost_connections: u64,
}

impl Seen {
    /// The beginning of the first span.
    pub fn since(&self) -> Option<u64> {
        self.spans.first().map(|span| span.from)
    }

    /// For how long somebody watched, in microseconds.
    pub fn watched(&self) -> u64 {
        self.spans.iter().map(|span| span.until.saturating_sub(span.from)).sum()
    }

    /// The times between `since` and `until` in which nobody watched, as far as they are longer than `tolerance` microseconds.
    pub fn gaps(&self, since: u64, until: u64, tolerance: u64) -> Vec<Span> {
        let mut gaps = Vec::new();
        let mut at = since;
        for span in &self.spans {
            if span.from > at {
                gaps.push(Span { from: at, until: span.from.min(until) });
            }
            at = at.max(span.until);
        }
        gaps.push(Span { from: at, until });
        gaps.retain(|gap| gap.until.saturating_sub(gap.from) > tolerance);
        gaps
    }

    /// Whether anything is known to be missing.
    pub const fn lost_something(&self) -> bool {
        self.left_out > 0 || self.lost_packets > 0 || self.lost_connections > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_what_no_span_covers() {
        let span = |from, until| Span { from, until };
        let seen = Seen { spans: vec![span(100, 200), span(205, 300), span(400, 500)], ..Seen::default() };
        assert_eq!(seen.since(), Some(100));
        assert_eq!(seen.watched(), 295);
        assert_eq!(seen.gaps(100, 500, 10), [span(300, 400)]);
        assert_eq!(seen.gaps(100, 500, 0), [span(200, 205), span(300, 400)]);
        assert_eq!(seen.gaps(0, 600, 10), [span(0, 100), span(300, 400), span(500, 600)]);
        assert_eq!(Seen::default().gaps(5, 50, 0), [span(5, 50)]);
    }
}
