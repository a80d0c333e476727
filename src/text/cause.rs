//! What an error says, with what caused it.

/// An error with its causes on one line, each said once: many errors spell out their causes already.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{words}")]
    struct Said {
        words: &'static str,
        source: Option<Box<Said>>,
    }

    #[test]
    fn a_cause_is_said_once() {
        let caused = |words, by: Said| Said { words, source: Some(Box::new(by)) };
        let refused = || Said { words: "refused", source: None };
        assert_eq!(chain(&refused()), "refused");
        assert_eq!(chain(&caused("no answer", refused())), "no answer: refused");
        assert_eq!(
            chain(&caused("no answer", caused("cannot connect: refused", refused()))),
            "no answer: cannot connect: refused"
        );
    }
}
