//! Policy files in directories and on the command line: which of them count, and what is wrong with the others.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Sourced;
use super::decoded::{Decoded, DecodedFile};
use super::kube::combine::combine;
use super::kube::{self, Holdings};
use super::merge::{Level, merge};
use crate::policy::clusters::Cluster;
use crate::text::finding::{Code, Finding};
use crate::text::place::Place;
use crate::textfile::{self, Trust, Unread};

/// What is loaded so far.
#[derive(Default)]
struct Loading<'a> {
    files: Vec<(Level, Arc<DecodedFile>)>,
    sourced: Sourced,
    /// The files as they were, of which those are kept that did not change.
    before: Option<&'a Decoded>,
}

impl Loading<'_> {
    fn report(&mut self, finding: Finding) {
        self.sourced.findings.push(finding);
    }

    fn text(&mut self, level: Level, name: &Arc<str>, text: impl Into<Arc<str>>) {
        self.decoded(level, name, Arc::new(DecodedFile::new(Arc::clone(name), text)));
    }

    fn decoded(&mut self, level: Level, name: &Arc<str>, file: Arc<DecodedFile>) {
        self.sourced.findings.extend(file.findings.iter().cloned());
        self.sourced.texts.insert(Arc::clone(name), Arc::clone(&file.text));
        // Order and standing decide how documents merge.
        let order = self.sourced.kept.len();
        self.sourced.kept.insert(format!("{order:06} {level} {name}"), Arc::clone(&file.text));
        self.files.push((level, file));
    }

    fn file(&mut self, level: Level, path: &Path, trust: Trust) {
        self.sourced.files.push(path.to_owned());
        match textfile::read(path, trust) {
            Ok(text) => {
                let known = self.before.and_then(|before| before.get(path)).filter(|known| *known.text == *text);
                match known.cloned() {
                    Some(known) => self.decoded(level, &textfile::name(path), known),
                    None => self.text(level, &textfile::name(path), text),
                }
                if let (Some(_), Some((_, file))) = (self.before, self.files.last()) {
                    self.sourced.decoded.insert(path.to_owned(), Arc::clone(file));
                }
            }
            Err(Unread::Missing) => {
                self.report(Finding::error(Code::Unreadable, &Place::file(textfile::name(path)), "does not exist"));
            }
            Err(Unread::Refused(finding)) => self.report(*finding),
        }
    }

    /// What clusters say comes after the files: of interfaces that match, the first counts.
    fn clusters(&mut self, (clusters, holdings): (&[Cluster], &Holdings)) {
        if clusters.is_empty() {
            return;
        }
        let files: Vec<Arc<DecodedFile>> = self.files.iter().map(|(_, file)| Arc::clone(file)).collect();
        let (objects, findings) = combine(clusters, holdings, &files);
        self.sourced.findings.extend(findings);
        for (called, object) in objects {
            self.object(&called, object);
        }
    }

    fn object(&mut self, called: &str, object: Arc<DecodedFile>) {
        self.sourced.findings.extend(object.findings.iter().cloned());
        let order = self.sourced.kept.len();
        self.sourced.kept.insert(format!("{order:06} 0 {called}"), Arc::clone(&object.text));
        self.files.push((0, object));
    }

    fn finish(mut self) -> Sourced {
        let documents = self.files.into_iter().map(|(level, file)| (level, Arc::unwrap_or_clone(file).documents));
        let (policy, findings) = merge(documents.collect());
        self.sourced.policy = policy;
        self.sourced.findings.extend(findings);
        self.sourced
    }
}

/// See [`super::load_directories`].
pub(super) fn load_directories(
    directories: &[PathBuf],
    trust: Trust,
    before: Option<&Decoded>,
    clusters: (&[Cluster], &Holdings),
) -> Sourced {
    let mut loading = Loading { before, ..Loading::default() };
    let mut chosen: BTreeMap<OsString, (Level, PathBuf)> = BTreeMap::new();
    for (level, directory) in directories.iter().enumerate() {
        match list(directory, trust) {
            Ok(names) => chosen.extend(names.into_iter().map(|name| {
                let path = directory.join(&name);
                (name, (level, path))
            })),
            Err(None) => {}
            Err(Some(finding)) => loading.report(*finding),
        }
    }
    let mut files: Vec<(Level, PathBuf)> = chosen.into_values().collect();
    files.sort();
    for (level, path) in files {
        if !is_mask(&path) {
            loading.file(level, &path, trust);
        }
    }
    loading.clusters(clusters);
    loading.finish()
}

/// See [`super::load_paths`].
pub(super) fn load_paths(
    paths: &[PathBuf],
    trust: Trust,
    before: Option<&Decoded>,
    clusters: (&[Cluster], &Holdings),
) -> Sourced {
    let mut loading = Loading { before, ..Loading::default() };
    let mut files: Vec<PathBuf> = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        match list(path, trust) {
            Ok(names) => files.extend(names.iter().map(|name| path.join(name)).filter(|file| !is_mask(file))),
            Err(None) => {}
            Err(Some(finding)) => loading.report(*finding),
        }
    }
    for (index, path) in files.iter().enumerate() {
        let again = files.get(..index).is_some_and(|before| before.contains(path));
        if !again {
            loading.file(0, path, trust);
        }
    }
    loading.clusters(clusters);
    loading.finish()
}

/// See [`super::decode_text`].
pub(super) fn decode_text(file: &str, text: &str) -> Sourced {
    let mut loading = Loading::default();
    loading.sourced.files.push(PathBuf::from(file));
    loading.text(0, &file.into(), text);
    loading.finish()
}

/// See [`super::decode_kept`].
pub(super) fn decode_kept(kept: &BTreeMap<String, Arc<str>>) -> Sourced {
    let mut loading = Loading::default();
    for (name, text) in kept {
        let mut words = name.splitn(3, ' ').skip(1);
        let level = words.next().and_then(|level| level.parse().ok()).unwrap_or_default();
        let file = words.next().unwrap_or(name);
        if let Some((cluster, kind, object)) = kube::name::parse(file) {
            loading.object(file, Arc::new(kube::item::decode(cluster, kind, object, Arc::clone(text))));
            continue;
        }
        loading.sourced.files.push(PathBuf::from(file));
        loading.text(level, &file.into(), Arc::clone(text));
    }
    loading.finish()
}

/// The names of the files of a directory that count; without a finding when there is no such directory.
fn list(directory: &Path, trust: Trust) -> Result<Vec<OsString>, Option<Box<Finding>>> {
    let failed = |error: &std::io::Error| {
        let message = format!("cannot list the directory: {}", textfile::reason(error));
        Some(Box::new(Finding::error(Code::Unreadable, &Place::file(textfile::name(directory)), message)))
    };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(None),
        Err(error) => return Err(failed(&error)),
    };
    if trust == Trust::Required {
        textfile::trusted_directory(directory).map_err(Some)?;
    }
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(|error| failed(&error))?.file_name();
        if counts(&name.to_string_lossy()) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// `*.toml`, but no dotfile. What editors and package managers leave behind (`x.toml~`, `x.toml.dpkg-old`, `x.toml.rpmsave`)
/// does not end so.
pub(super) fn counts(name: &str) -> bool {
    name.ends_with(".toml") && !name.starts_with('.') && !name.contains(".dpkg-")
}

/// A link to /dev/null: the file of this name is switched off.
fn is_mask(path: &Path) -> bool {
    fs::read_link(path).is_ok_and(|target| target == Path::new("/dev/null"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::text::finding::Severity;
    use crate::text::render::line;

    const NO_CLUSTERS: (&[Cluster], &Holdings) = (&[], &Holdings::new());

    fn set(name: &str, cidr: &str) -> String {
        format!("[[set]]\nname = \"{name}\"\ncidrs = [\"{cidr}\"]\n")
    }

    /// Findings as lines, with the temporary directory cut off.
    fn lines(sourced: &Sourced, directory: &Path) -> Vec<String> {
        let prefix = format!("{}/", directory.display());
        sourced.findings.iter().map(|finding| line(finding).replace(&prefix, "")).collect()
    }

    #[test]
    fn whatever_lies_in_a_directory_the_rest_still_loads() {
        let temporary = tempfile::tempdir().unwrap();
        let at = |name: &str| temporary.path().join(name);
        fs::write(at("10-good.toml"), set("good", "10.0.0.0/8")).unwrap();
        fs::create_dir(at("20-directory.toml")).unwrap();
        nix::unistd::mkfifo(&at("30-fifo.toml"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        fs::File::create(at("40-large.toml")).unwrap().set_len(100 << 20).unwrap();
        fs::write(at("50-latin1.toml"), b"# caf\xc3\xa9\n# caf\xe9\n").unwrap();
        symlink("nowhere", at("60-dangling.toml")).unwrap();
        symlink("70-loop.toml", at("70-loop.toml")).unwrap();
        symlink("/dev/null", at("80-masked.toml")).unwrap();
        symlink("/dev/zero", at("85-device.toml")).unwrap();
        fs::write(at("90-broken.toml"), "[[set]\n").unwrap();
        for ignored in [".hidden.toml", "x.toml~", "x.toml.dpkg-old", "x.toml.rpmsave", "x.toml.rpmnew", "README"] {
            fs::write(at(ignored), "nonsense").unwrap();
        }
        fs::write(at("99-last.toml"), set("last", "fd00::/8")).unwrap();
        let sourced = load_directories(&[temporary.path().to_owned(), at("missing")], Trust::Anyone, None, NO_CLUSTERS);
        assert_eq!(sourced.policy.sets.keys().collect::<Vec<_>>(), ["good", "last"]);
        assert_eq!(
            lines(&sourced, temporary.path()),
            [
                "20-directory.toml: error[unreadable]: a directory, not a regular file",
                "30-fifo.toml: error[unreadable]: a FIFO, not a regular file",
                "40-large.toml: error[unreadable]: 104857600 bytes, more than the 16 MiB that are read",
                "50-latin1.toml:2:6: error[unreadable]: not UTF-8: byte 0xe9; save the file as UTF-8",
                "60-dangling.toml: error[unreadable]: a link to a file that does not exist",
                "70-loop.toml: error[unreadable]: cannot be read: too many symbolic links encountered",
                "85-device.toml: error[unreadable]: a device, not a regular file",
                "90-broken.toml:1:7: error[syntax]: not TOML: unclosed array table, expected `]`",
            ]
        );
    }

    #[test]
    fn a_later_directory_replaces_files_and_names() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = |name: &str, files: &[(&str, String)]| {
            let path = temporary.path().join(name);
            fs::create_dir(&path).unwrap();
            for (file, text) in files {
                fs::write(path.join(file), text).unwrap();
            }
            path
        };
        let vendor = directory(
            "vendor",
            &[
                ("10-a.toml", set("a", "10.1.0.0/16")),
                ("20-b.toml", set("b", "10.2.0.0/16")),
                ("30-c.toml", set("c", "10.3.0.0/16")),
                ("40-d.toml", set("d", "10.4.0.0/16")),
                ("50-tier.toml", "[[tier]]\nname = \"platform\"\norder = 7\ndefault = \"deny\"\n".into()),
            ],
        );
        let admin = directory(
            "admin",
            &[
                ("10-a.toml", set("a2", "10.5.0.0/16")),
                ("60-b.toml", set("b", "10.6.0.0/16")),
                ("70-d.toml", set("d", "10.6.0.1/16")),
            ],
        );
        symlink("/dev/null", admin.join("30-c.toml")).unwrap();
        let sourced = load_directories(&[vendor, admin], Trust::Required, None, NO_CLUSTERS);
        let sets: Vec<String> =
            sourced.policy.sets.iter().map(|(name, set)| format!("{name} {}", set.cidrs[0])).collect();
        // "d" is broken where it counts, so that the one below must not come back.
        assert_eq!(sets, ["a2 10.5.0.0/16", "b 10.6.0.0/16"]);
        assert_eq!(sourced.policy.tiers["platform"].order, 7);
        assert_eq!(sourced.findings.len(), 1, "{:?}", lines(&sourced, temporary.path()));
        assert_eq!(sourced.files.len(), 6);
    }

    #[test]
    fn files_that_others_could_have_written_are_not_used() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("x.toml");
        fs::write(&path, set("x", "10.0.0.0/8")).unwrap();
        let load = || load_directories(&[temporary.path().to_owned()], Trust::Required, None, NO_CLUSTERS);
        assert!(load().findings.is_empty());
        for mode in [0o620, 0o602, 0o666] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let sourced = load();
            assert!(sourced.policy.sets.is_empty());
            assert_eq!(sourced.findings[0].code, Code::Untrusted);
            assert_eq!(sourced.findings[0].severity, Severity::Error);
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
        assert!(lines(&load(), temporary.path())[0].contains("owned by user 65534"));
        assert!(load_paths(std::slice::from_ref(&path), Trust::Anyone, None, NO_CLUSTERS).findings.is_empty());
        std::os::unix::fs::chown(&path, Some(0), None).unwrap();
        fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let sourced = load();
        assert!(sourced.policy.sets.is_empty() && sourced.findings[0].code == Code::Untrusted);
        // A link from a good directory to a file in a bad one.
        let good = tempfile::tempdir().unwrap();
        symlink(&path, good.path().join("y.toml")).unwrap();
        let sourced = load_directories(&[good.path().to_owned()], Trust::Required, None, NO_CLUSTERS);
        assert!(sourced.policy.sets.is_empty() && sourced.findings[0].code == Code::Untrusted);
    }

    #[test]
    fn paths_of_the_command_line_are_files_or_directories() {
        let temporary = tempfile::tempdir().unwrap();
        let at = |name: &str| temporary.path().join(name);
        fs::write(at("policy"), set("any-suffix", "10.0.0.0/8")).unwrap();
        fs::create_dir(at("d")).unwrap();
        fs::write(at("d/a.toml"), set("a", "10.0.0.0/8")).unwrap();
        let sourced =
            load_paths(&[at("policy"), at("d"), at("d/a.toml"), at("nope.toml")], Trust::Anyone, None, NO_CLUSTERS);
        assert_eq!(sourced.policy.sets.keys().collect::<Vec<_>>(), ["a", "any-suffix"]);
        assert_eq!(lines(&sourced, temporary.path()), ["nope.toml: error[unreadable]: does not exist"]);
    }
}
