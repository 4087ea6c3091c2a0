//! A small RMP of its own in Rust, as a device under test for rmpcore's test vectors: cases on stdin, answers on stdout.
//!
//!     rustc -O --edition 2021 -o rmp-rs rmp.rs && rmpcore ver vectors/level1.txt -- ./rmp-rs
//!
//! Written from docs/rmp.md alone; no crates, Rust 1.63 or later.  It knows RMPUPDATE, PSMASH, RMPREAD, PVALIDATE,
//! RMPADJUST and the accesses of the host, and skips everything else.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufRead, BufWriter, Write};

const REGION: u64 = 512;
const ASSIGNED: u64 = 1;
const LARGE: u64 = 1 << 1;
const IMMUTABLE: u64 = 1 << 2;
const COUNT: u64 = 0x1ff << 3;
const GPA: u64 = 0x0007_ffff_ffff_f000;
const ASID: u64 = 0x3ff << 51;
const VMSA: u64 = 1 << 61;
const VALIDATED: u64 = 1 << 62;
const LOCK: u64 = 1 << 63;

type Keys = HashMap<String, String>;

#[derive(Clone, Copy, Default, PartialEq)]
struct Entry {
    lo: u64,
    hi: u64,
}

impl Entry {
    fn is(self, bits: u64) -> bool {
        self.lo & bits == bits
    }

    fn asid(self) -> u64 {
        (self.lo & ASID) >> 51
    }

    fn permissions(self, vmpl: u64) -> u64 {
        self.hi >> (8 * vmpl) & 0xff
    }
}

/// What the file says of a machine: where its table ends, and the switches.
#[derive(Clone, Default)]
struct Machine {
    numbers: HashMap<String, u64>,
}

impl Machine {
    fn get(&self, name: &str) -> u64 {
        self.numbers.get(name).copied().unwrap_or(0)
    }
}

/// The state of a case: entries that are not zero, and frames that a VMRUN has in use.
#[derive(Clone, Default)]
struct State {
    entries: BTreeMap<u64, Entry>,
    in_use: Vec<u64>,
}

/// What comes out: the fields of a result line.
type Outcome = String;

fn code(eax: u64) -> Outcome {
    format!("kind=CODE ret={eax}")
}

fn fault(vector: u64, error: u64, cr2: u64) -> Outcome {
    format!("kind=FAULT ret={vector} value={error:#x} value2={cr2:#x}")
}

fn nested(info: u64, gpa: u64, reason: &str) -> Outcome {
    format!("kind=NPF ret=1024 value={info:#x} value2={gpa:#x} reason={reason}")
}

fn number(text: &str) -> u64 {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    }
    .unwrap_or(0)
}

fn keys(text: &str) -> Keys {
    text.split_whitespace()
        .filter_map(|word| word.split_once('='))
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .collect()
}

/// One op on one state.
struct Cpu<'a> {
    machine: &'a Machine,
    state: &'a mut State,
    args: Keys,
}

impl Cpu<'_> {
    fn arg(&self, name: &str) -> u64 {
        match self.args.get(name).map(String::as_str) {
            Some("4K") => 1,
            Some("2M") => 2,
            Some("1G") => 3,
            Some(text) => number(text),
            None => 0,
        }
    }

    fn frame(&self, name: &str) -> u64 {
        (self.arg(name) & !self.machine.get("c_bit")) >> 12
    }

    fn entry(&self, pfn: u64) -> Entry {
        self.state.entries.get(&pfn).copied().unwrap_or_default()
    }

    fn store(&mut self, pfn: u64, entry: Entry) {
        self.state.entries.insert(pfn, entry);
    }

    fn covered(&self, pfn: u64) -> bool {
        pfn < self.machine.get("frames")
    }

    fn gpa_field(&self) -> u64 {
        GPA & ((1 << self.machine.get("gpa_bits")) - 1)
    }

    fn any_in_use(&self, first: u64, count: u64) -> bool {
        self.state.in_use.iter().any(|&pfn| pfn >= first && pfn < first + count && self.covered(pfn))
    }

    /// Is one of the pages from `first` on assigned?
    fn any_assigned(&self, first: u64, count: u64) -> bool {
        self.state.entries.range(first..first + count).any(|(&pfn, entry)| self.covered(pfn) && entry.is(ASSIGNED))
    }

    fn rmpupdate(&mut self) -> u64 {
        let mut high = self.arg("assigned") | self.arg("immutable") << 16 | self.arg("asid") << 32 | self.arg("reserved");
        if self.arg("size") == 2 {
            high |= 1 << 8;
        }
        let (assigned, large, immutable) = (high & 1 == 1, high >> 8 & 1 == 1, high >> 16 & 1 == 1);
        let asid = high >> 32;
        let pfn = self.frame("pa");
        let head = pfn - pfn % REGION;
        let pages = if large { REGION } else { 1 };
        if self.arg("guest") == 1 {
            return 2; // row 1
        }
        if large && pfn != head || !assigned && (immutable || asid != 0) || asid > 0x3ff {
            return 1; // rows 3, 4
        }
        if !self.covered(pfn) || !self.covered(pfn + pages - 1) {
            return 1; // row 5
        }
        let old = self.entry(pfn);
        if old.is(IMMUTABLE) {
            return 2; // row 6
        }
        if self.any_in_use(pfn, pages) {
            return 3; // row 7
        }
        let overlap = if large {
            !old.is(LARGE) && self.any_assigned(head + 1, REGION - 1) // row 9
        } else if pfn == head {
            old.is(LARGE) // row 8
        } else {
            self.entry(head).is(ASSIGNED | LARGE) // row 8b
        };
        if overlap {
            return 4;
        }
        let mut new = Entry { lo: self.arg("gpa") & self.gpa_field() | asid << 51, hi: self.machine.get("vmpl0_all") };
        for (on, bits) in [(assigned, ASSIGNED), (assigned && large, LARGE), (immutable, IMMUTABLE | LOCK)] {
            new.lo |= if on { bits } else { 0 };
        }
        if asid != 0 && (old.lo ^ new.lo) & (ASSIGNED | LARGE | GPA | ASID) == 0 {
            new.lo |= old.lo & (VMSA | VALIDATED);
            new.hi = old.hi;
        }
        if large {
            let inner = Entry { lo: if assigned { ASSIGNED } else { 0 }, hi: 0 };
            for other in head + 1..head + REGION {
                self.store(other, inner);
            }
        } else if pfn == head {
            new.lo |= old.lo & COUNT;
        } else {
            let mut first = self.entry(head);
            let count = (first.lo & COUNT) >> 3;
            let count = match (old.is(ASSIGNED), assigned) {
                (false, true) => (count + 1).min(511),
                (true, false) => count.saturating_sub(1),
                _ => count,
            };
            first.lo = first.lo & !COUNT | count << 3;
            self.store(head, first);
        }
        self.store(pfn, new);
        0
    }

    fn psmash(&mut self) -> u64 {
        let pfn = self.frame("pa");
        if self.arg("guest") == 1 {
            return 2;
        }
        if self.arg("pa") & 0x1f_ffff != 0 || !self.covered(pfn) || !self.covered(pfn + REGION - 1) {
            return 1;
        }
        if self.any_in_use(pfn, REGION) {
            return 3;
        }
        let old = self.entry(pfn);
        if !old.is(ASSIGNED | LARGE) || old.is(IMMUTABLE) {
            return 7;
        }
        for i in 0..REGION {
            let gpa = (old.lo & GPA).wrapping_add(i << 12) & self.gpa_field();
            let count = if i == 0 { COUNT } else { 0 };
            self.store(pfn + i, Entry { lo: old.lo & !(LARGE | COUNT | GPA) | gpa | count, hi: old.hi });
        }
        0
    }

    fn rmpread(&mut self) -> Outcome {
        let pfn = self.frame("pa");
        if self.arg("guest") == 1 {
            return code(2);
        }
        if !self.covered(pfn) {
            return code(1);
        }
        let entry = self.entry(pfn);
        let mut high = entry.lo & 1 | (entry.lo >> 1 & 1) << 8 | (entry.lo >> 2 & 1) << 16 | entry.asid() << 32;
        if pfn % REGION == 0 && entry.lo & COUNT != 0 {
            high |= 1 << 9;
        }
        format!("kind=CODE ret=0 value={:#x} value2={high:#x}", entry.lo & GPA)
    }

    /// The checks of a guest instruction's page (rmp §2.5 rows 6 and 7): the governing frame and entry.
    fn guest_page(&self, asks_large: bool) -> Result<(u64, Entry), Outcome> {
        const INFO: u64 = 0x4_8000_0005;
        let (pfn, gpa, asid) = (self.frame("pa"), self.arg("gpa"), self.arg("asid"));
        let no = |reason| Err(nested(INFO, gpa, reason));
        if !self.covered(pfn) {
            return no("UNCOVERED");
        }
        let head = pfn - pfn % REGION;
        let at = if self.entry(head).is(ASSIGNED | LARGE) { head } else { pfn };
        let entry = self.entry(at);
        let expected = ((entry.lo & GPA) + ((pfn - at) << 12)) & self.gpa_field();
        if !entry.is(ASSIGNED) || asid == 0 || entry.asid() != asid {
            return no("OWNER");
        }
        if gpa & !0xfff != expected {
            return no("GPA");
        }
        if entry.is(IMMUTABLE) {
            return no("IMMUTABLE");
        }
        if entry.is(LARGE) && (!asks_large || self.arg("level") == 1) {
            return Err(nested(INFO | 1 << 35, gpa, "SIZE"));
        }
        Ok((at, entry))
    }

    fn pvalidate(&mut self) -> Outcome {
        let (ecx, edx) = (self.arg("rcx") & 0xffff_ffff, self.arg("rdx") & 0xffff_ffff);
        if self.arg("vmpl") != 0 {
            return fault(13, 0, 0);
        }
        if ecx > 1 || edx > 1 || ecx == 1 && self.arg("gva") & 0x1f_f000 != 0 {
            return code(1);
        }
        let (at, mut entry) = match self.guest_page(ecx == 1) {
            Ok(found) => found,
            Err(outcome) => return outcome,
        };
        if ecx == 1 && !entry.is(LARGE) {
            return code(6);
        }
        if u64::from(entry.is(VALIDATED)) == edx {
            return code(0) + " cf=1";
        }
        entry.lo ^= VALIDATED;
        self.store(at, entry);
        code(0)
    }

    fn rmpadjust(&mut self) -> Outcome {
        let (rcx, rdx, vmpl) = (self.arg("rcx"), self.arg("rdx"), self.arg("vmpl"));
        let (target, mask) = (rdx & 0xff, rdx >> 8 & 0xff);
        let misaligned = rcx == 1 && self.arg("gva") & 0x1f_f000 != 0;
        if rcx > 1 || rdx >> 17 != 0 || mask > 0x1f || misaligned || target >= self.machine.get("vmpls") {
            return code(1);
        }
        if target <= vmpl {
            return code(2);
        }
        let (at, mut entry) = match self.guest_page(rcx == 1) {
            Ok(found) => found,
            Err(outcome) => return outcome,
        };
        if !entry.is(VALIDATED) {
            return fault(29, 0x404, self.arg("gva"));
        }
        if rcx == 1 && !entry.is(LARGE) {
            return code(6);
        }
        if mask & !entry.permissions(vmpl) != 0 {
            return code(2);
        }
        entry.hi = entry.hi & !(0xff << (8 * target)) | mask << (8 * target);
        if vmpl == 0 {
            entry.lo = entry.lo & !VMSA | (rdx >> 16 & 1) << 61;
        }
        self.store(at, entry);
        code(0)
    }

    fn host_access(&self) -> Outcome {
        let allowed = "kind=ALLOWED ret=0".to_string();
        let kind = self.args.get("access").map_or("read", String::as_str);
        if matches!(kind, "read" | "fetch") || self.machine.get("frames") == 0 {
            return allowed;
        }
        let level = if matches!(kind, "walk" | "walk_write") { 1 } else { self.arg("level") };
        let pfn = self.frame("pa");
        let head = pfn - pfn % REGION;
        let mut reason = None;
        if self.covered(pfn) {
            if self.entry(pfn).is(ASSIGNED) {
                reason = Some("ASSIGNED");
            } else if level > 1 && self.any_assigned(head, REGION) {
                reason = Some("NEIGHBOUR");
            }
        }
        let marked = self.any_in_use(pfn, 1) || level > 1 && self.any_in_use(head, 1);
        if reason.is_none() && kind != "walk" && marked && self.machine.get("hv_in_use_wr") == 0 {
            reason = Some("IN_USE");
        }
        let mut error = 0x8000_0001 | self.arg("user") << 2;
        if kind != "walk" {
            error |= 2;
        }
        reason.map_or(allowed, |reason| fault(14, error, self.arg("gva")) + " reason=" + reason)
    }

    /// None: this program does not know the op.
    fn execute(&mut self, name: &str) -> Option<Outcome> {
        let enabled = self.machine.get("frames") != 0;
        let host = matches!(name, "RMPUPDATE" | "PSMASH" | "RMPREAD");
        if host || matches!(name, "PVALIDATE" | "RMPADJUST") {
            let absent = name == "RMPREAD" && self.machine.get("rmpread") == 0;
            if !enabled || absent || !host && self.arg("plain") == 1 {
                return Some(fault(6, 0, 0));
            }
            if self.arg("user") == 1 {
                return Some(fault(13, 0, 0));
            }
        }
        match name {
            "RMPUPDATE" => Some(code(self.rmpupdate())),
            "PSMASH" => Some(code(self.psmash())),
            "RMPREAD" => Some(self.rmpread()),
            "PVALIDATE" => Some(self.pvalidate()),
            "RMPADJUST" => Some(self.rmpadjust()),
            "access" if self.args.get("who").map(String::as_str) == Some("host") => Some(self.host_access()),
            _ => None,
        }
    }
}

/// A case while it is read.
#[derive(Default)]
struct Case {
    name: String,
    machine: String,
    state: State,
    op: String,
    unknown: bool,
}

impl Case {
    fn item(&mut self, word: &str, rest: &str) {
        let fields = keys(rest);
        let get = |name: &str| fields.get(name).map_or(0, |text| number(text));
        match word {
            "rmp" => {
                for i in 0..get("n").max(1) {
                    let lo = get("lo").wrapping_add(i.wrapping_mul(get("step")));
                    self.state.entries.insert(get("pfn") + i, Entry { lo, hi: get("hi") });
                }
            }
            "in_use" => {
                let frames = [get("vmcb"), get("vmsa"), get("avic")];
                self.state.in_use.extend(frames.into_iter().filter(|&pfn| pfn != 0));
            }
            "op" => self.op = rest.to_string(),
            "rule" | "about" => {}
            _ => self.unknown = true,
        }
    }

    fn answer(&self, machine: &Machine, out: &mut impl Write) -> io::Result<()> {
        let (name, args) = self.op.split_once(' ').unwrap_or((&self.op, ""));
        let mut after = self.state.clone();
        let outcome = Cpu { machine, state: &mut after, args: keys(args) }.execute(name);
        let outcome = match outcome {
            Some(outcome) if !self.unknown => outcome,
            _ => return writeln!(out, "skip {}", self.name),
        };
        writeln!(out, "answer {}\nresult {outcome}", self.name)?;
        for (pfn, entry) in &after.entries {
            if self.state.entries.get(pfn).copied().unwrap_or_default() != *entry {
                writeln!(out, "rmp pfn={pfn:#x} lo={:#x} hi={:#x}", entry.lo, entry.hi)?;
            }
        }
        writeln!(out, "end")
    }
}

fn main() -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout());
    writeln!(out, "rmpcore-answers version=1")?;
    let mut machines: HashMap<String, Machine> = HashMap::new();
    let mut describing: Option<String> = None;
    let mut case: Option<Case> = None;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        match (word, &mut case) {
            ("end", Some(done)) => {
                let machine = machines.get(&done.machine).cloned().unwrap_or_default();
                done.answer(&machine, &mut out)?;
                case = None;
            }
            ("end", None) => describing = None,
            ("case", None) => {
                let name = rest.split(' ').next().unwrap_or("").to_string();
                let machine = keys(rest).remove("machine").unwrap_or_default();
                case = Some(Case { name, machine, ..Case::default() });
            }
            (_, Some(open)) => open.item(word, rest),
            ("machine", None) => describing = Some(rest.to_string()),
            ("map" | "rmp_table" | "switches", None) => {
                if let Some(name) = &describing {
                    let machine = machines.entry(name.clone()).or_default();
                    machine.numbers.extend(keys(rest).iter().map(|(key, text)| (key.clone(), number(text))));
                }
            }
            _ => {}
        }
    }
    out.flush()
}
