//! What the thread that talks to nf_tables tells, against a kernel in memory.

use std::sync::{Mutex, PoisonError};

use super::*;
use crate::driver::Memory;
use crate::nft::change::Batch;
use crate::nft::ir::{Chain, Rule, Statement, Verdict};

/// A kernel that others can change, too.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Memory>>);

impl Shared {
    fn with<T>(&self, work: impl FnOnce(&mut Memory) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Somebody else's transaction.
    fn commits(&self, changes: Vec<Change>) -> Result<(), driver::Error> {
        self.with(|memory| memory.commit(&Batch { generation: None, changes }))
    }
}

impl Kernel for Shared {
    fn generation(&mut self) -> Result<u32, driver::Error> {
        self.with(Memory::generation)
    }

    fn load(&mut self, read: &Read) -> Result<Loaded, driver::Error> {
        self.with(|memory| memory.load(read))
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), driver::Error> {
        self.with(|memory| memory.commit(batch))
    }
}

/// One chain with so many rules.
fn ruleset(rules: usize) -> Arc<Ruleset> {
    let rule = |number| Rule {
        statements: vec![Statement::Counter, Statement::Verdict(Verdict::Return)],
        comment: Some(format!("rule {number}")),
    };
    let chain = Chain { base: None, rules: (0..rules).map(rule).collect() };
    let mut ruleset = Ruleset::default();
    ruleset.chains.insert("one".to_owned(), chain);
    Arc::new(ruleset)
}

#[tokio::test]
async fn what_an_apply_mends_of_anothers_doing_is_told() -> Result<(), Error> {
    let kernel = Shared::default();
    let (thread, _) = KernelThread::start(Box::new(kernel.clone())).map_err(|_| Error::Gone)?;
    assert_eq!(thread.apply(ruleset(1), None).await?.difference, Vec::<String>::new(), "nothing was ours before");
    assert_eq!(thread.apply(ruleset(2), None).await?.difference, Vec::<String>::new(), "nobody else did anything");
    let flush = || vec![Change::FlushChain { name: "one".to_owned() }];
    kernel.commits(flush())?;
    let applied = thread.apply(ruleset(2), None).await?;
    assert!(applied.changes > 0 && !applied.difference.is_empty(), "the same again: {applied:?}");
    assert!(applied.difference.iter().all(|difference| difference.contains("missing")), "{applied:?}");
    kernel.commits(flush())?;
    assert!(!thread.apply(ruleset(3), None).await?.difference.is_empty(), "and another one");
    assert!(thread.apply(ruleset(3), None).await?.difference.is_empty(), "it is told once");
    kernel.commits(vec![Change::AddTable])?;
    assert!(thread.apply(ruleset(1), None).await?.difference.is_empty(), "another transaction is no difference");
    Ok(())
}
