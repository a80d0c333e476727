//! Where the identity of a node is on disk: a kubeconfig, and one file with certificate and key, so that they change together. That is in
//! the state directory, as the daemon writes nowhere else.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf, absolute};

use k8s_openapi::ByteString;
use serde_json::json;

use super::certificate::{self, Certificate};
use super::request::Key;
use super::{GROUP, node_of};
use crate::connect::kubeconfig;
use crate::textfile::{self, Trust, Unread};

/// The files of an identity, by absolute paths.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Files {
    /// The kubeconfig; names the identity.
    pub kubeconfig: PathBuf,
    /// Certificate and key.
    pub identity: PathBuf,
    /// The key of a request that is under way.
    pub pending: PathBuf,
}

/// Certificate and key of a node.
pub struct Identity {
    /// What the certificate says.
    pub certificate: Certificate,
    /// The node.
    pub node: String,
}

impl Files {
    /// For a kubeconfig, with its identity below this state directory.
    ///
    /// # Errors
    /// One of them is no path.
    pub fn of(kubeconfig: &Path, state: &Path) -> Result<Self, String> {
        let no_path = |path: &Path| format!("{} is no path of a file", path.display());
        let kubeconfig = absolute(kubeconfig).map_err(|_| no_path(kubeconfig))?;
        let state = absolute(state).map_err(|_| no_path(state))?;
        let name = kubeconfig.file_name().ok_or_else(|| no_path(&kubeconfig))?;
        let identity = with(&state.join("identity").join(name), ".pem");
        Ok(Self { pending: pending(&identity), identity, kubeconfig })
    }

    /// Those of a kubeconfig whose certificate and key are in one file, as `join` writes it.
    ///
    /// # Errors
    /// The kubeconfig cannot be read. `None`: it has another identity, which is not ours to renew.
    pub fn of_kubeconfig(kubeconfig: &Path) -> Result<Option<Self>, String> {
        if !kubeconfig.exists() {
            return Ok(None);
        }
        let config = kubeconfig::read(kubeconfig)
            .map_err(|why| format!("{} is no kubeconfig that can be read: {why}", kubeconfig.display()))?;
        let users: Vec<_> = config.auth_infos.into_iter().filter_map(|named| named.auth_info).collect();
        let [user] = &users[..] else { return Ok(None) };
        let (Some(certificate), Some(key)) = (&user.client_certificate, &user.client_key) else { return Ok(None) };
        if certificate != key {
            return Ok(None);
        }
        let identity = PathBuf::from(certificate);
        Ok(Some(Self { kubeconfig: kubeconfig.to_owned(), pending: pending(&identity), identity }))
    }

    /// The identity; `None` when there is none.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn identity(&self) -> Result<Option<Identity>, String> {
        let Some(text) = read(&self.identity)? else { return Ok(None) };
        let wrong = |why: String| format!("{}: {why}", self.identity.display());
        let certificate = certificate::read(&text).map_err(wrong)?;
        if Key::from_pem(&text).map_err(wrong)?.public() != certificate.key {
            return Err(wrong("certificate and key are not of each other".to_owned()));
        }
        let node = node_of(&certificate.user).filter(|_| certificate.groups.contains(GROUP));
        let node = node.ok_or_else(|| wrong(format!("\"{}\" is no node of nodewall", certificate.user)))?;
        Ok(Some(Identity { node: node.to_owned(), certificate }))
    }

    /// The key of a request that is under way, else a new one that is on disk from now on: a request that was sent is worth something
    /// only with its key.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn pending_key(&self) -> io::Result<Key> {
        if let Ok(Some(text)) = read(&self.pending)
            && let Ok(key) = Key::from_pem(&text)
        {
            return Ok(key);
        }
        let key = Key::generate().map_err(io::Error::other)?;
        if let Some(directory) = self.pending.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        write(&self.pending, &key.to_pem())?;
        Ok(key)
    }

    /// Forgets the key of a request that came to nothing, or that is the identity's now.
    ///
    /// # Errors
    /// It cannot be removed.
    pub(super) fn forget_pending(&self) -> io::Result<()> {
        match fs::remove_file(&self.pending) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Puts a certificate and its key in force.
    ///
    /// # Errors
    /// They cannot be written; then what was there before is there still.
    pub(super) fn write_identity(&self, chain: &str, key: &Key) -> io::Result<()> {
        write(&self.identity, &format!("{}\n{}", chain.trim_end(), key.to_pem()))?;
        self.forget_pending()
    }

    /// Writes the kubeconfig: this server, these roots (DER), and the identity.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn write_kubeconfig(&self, server: &str, roots: &[Vec<u8>]) -> io::Result<()> {
        let mut authority = String::new();
        for root in roots {
            authority += &pem("CERTIFICATE", root);
        }
        let identity = self.identity.to_str().ok_or_else(|| io::Error::other("its path is not UTF-8"))?;
        let text = format!(
            "# Made by `nodewall join`. The daemon renews what is in the file of the certificate.\n\
             apiVersion: v1\nkind: Config\ncurrent-context: nodewall\n\
             contexts:\n- name: nodewall\n  context:\n    cluster: cluster\n    user: node\n\
             clusters:\n- name: cluster\n  cluster:\n    server: {}\n    certificate-authority-data: {}\n\
             users:\n- name: node\n  user:\n    client-certificate: {identity}\n    client-key: {identity}\n",
            json!(server),
            json!(ByteString(authority.into_bytes())),
            identity = json!(identity),
        );
        write(&self.kubeconfig, &text)
    }
}

/// DER as PEM.
fn pem(label: &str, der: &[u8]) -> String {
    let encoded = json!(ByteString(der.to_vec()));
    let encoded = encoded.as_str().unwrap_or_default();
    let mut text = format!("-----BEGIN {label}-----\n");
    // Base64 is ASCII.
    for line in encoded.as_bytes().chunks(64) {
        text += &String::from_utf8_lossy(line);
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

fn pending(identity: &Path) -> PathBuf {
    with(identity, ".pending-key")
}

fn with(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// A file that only root may write; `None` when it is not there.
fn read(path: &Path) -> Result<Option<String>, String> {
    match textfile::read(path, Trust::Required) {
        Ok(text) => Ok(Some(text)),
        Err(Unread::Missing) => Ok(None),
        Err(Unread::Refused(finding)) => Err(format!("{}: {}", path.display(), finding.message)),
    }
}

/// Writes a file for nobody else, whole or not at all, and on disk when this returns.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let directory = path.parent().ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "it is no path of a file"))?;
    if !directory.is_dir() {
        fs::create_dir_all(directory)?;
    }
    let new = with(path, ".new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        // One that a crash left behind.
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn files_are_for_nobody_else_and_one_of_a_crash_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a").join("file");
        fs::create_dir(folder.path().join("a")).unwrap();
        fs::write(folder.path().join("a/file.new"), "half of").unwrap();
        write(&path, "one").unwrap();
        write(&path, "two").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path().join("a")).unwrap().count(), 1);
    }

    #[test]
    fn a_pending_key_is_the_same_until_it_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::of(&folder.path().join("kubeconfig"), folder.path()).unwrap();
        let first = files.pending_key().unwrap().public();
        assert_eq!(files.pending_key().unwrap().public(), first);
        fs::write(&files.pending, "no key").unwrap();
        let second = files.pending_key().unwrap().public();
        assert_ne!(second, first);
        files.forget_pending().unwrap();
        files.forget_pending().unwrap();
        assert_ne!(files.pending_key().unwrap().public(), second);
    }

    #[test]
    fn an_identity_is_a_node_with_its_own_key_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::of(&folder.path().join("kubeconfig"), folder.path()).unwrap();
        assert!(files.identity().unwrap().is_none());
        let key = files.pending_key().unwrap();
        let certified = |user: &str| {
            let key = rcgen::KeyPair::from_pem(&key.to_pem()).unwrap();
            let mut parameters = rcgen::CertificateParams::default();
            parameters.distinguished_name = rcgen::DistinguishedName::new();
            parameters.distinguished_name.push(rcgen::DnType::OrganizationName, GROUP);
            parameters.distinguished_name.push(rcgen::DnType::CommonName, user);
            parameters.self_signed(&key).unwrap().pem()
        };
        files.write_identity(&certified("nodewall:node:gpu-17"), &key).unwrap();
        assert_eq!(files.identity().unwrap().unwrap().node, "gpu-17");
        assert!(!files.pending.exists());
        files.write_identity(&certified("jane"), &key).unwrap();
        assert!(files.identity().err().unwrap().ends_with("\"jane\" is no node of nodewall"));
        files.write_identity(&certified("nodewall:node:gpu-17"), &Key::generate().unwrap()).unwrap();
        assert!(files.identity().err().unwrap().ends_with("not of each other"));
    }

    #[test]
    fn the_kubeconfig_names_one_file_for_both_and_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::of(&folder.path().join("kube\"config"), folder.path()).unwrap();
        files.write_kubeconfig("https://[::1]:6443/a#b", &[b"root".to_vec()]).unwrap();
        assert_eq!(Files::of_kubeconfig(&files.kubeconfig).unwrap(), Some(files.clone()));
        let text = fs::read_to_string(&files.kubeconfig).unwrap();
        assert!(text.contains("server: \"https://[::1]:6443/a#b\"\n"), "{text}");
        fs::write(&files.kubeconfig, text.replace("client-key:", "client-key-data: Zm9v\n    x:")).unwrap();
        assert_eq!(Files::of_kubeconfig(&files.kubeconfig).unwrap(), None);
        assert_eq!(Files::of_kubeconfig(&folder.path().join("nothing")).unwrap(), None);
    }
}
