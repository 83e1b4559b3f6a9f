//! Layers by sites: how far each result is off, step by step.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use crate::{
    compare::verdict::Outcome,
    diagnosis::{
        album::Album,
        replay::{Operation, name},
    },
    graph::site::{Site, Stage},
    report::{Report, SiteRow},
};

/// At most so many cells of a map are on a page: of a longer run the first steps.
const MOST_CELLS: usize = 16_000;

/// A cell without a number.
const UNMEASURED: f64 = -1.0;
const REFUSED: f64 = -2.0;
const INFINITE: f64 = -3.0;

/// One row of the map.
#[derive(Debug, Serialize)]
pub struct SiteLabel {
    /// As a trace names it, without the layer.
    pub name: &'static str,
    /// The operation that makes it, in words.
    pub what: &'static str,
    /// What its axes count.
    pub axes: String,
    /// ggml's operation, where the graph is known.
    pub op: Option<String>,
    /// Before the layers, in each, or after them.
    pub part: Part,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    Before,
    Layer,
    After,
}

/// The rows and columns of both maps.
#[derive(Debug, Serialize)]
pub struct Layout {
    pub layers: usize,
    pub sites: Vec<SiteLabel>,
    #[serde(skip)]
    rows: HashMap<(bool, Stage), usize>,
    /// Sites that the model has, by row and layer.
    #[serde(skip)]
    there: Vec<bool>,
}

/// One kind of error over steps, rows and layers.
#[derive(Debug, Serialize)]
pub struct Map {
    /// Above this a result is wrong.
    pub limit: f64,
    /// The position of each step's first token, and its tokens.
    pub steps: Vec<[usize; 2]>,
    /// How many steps there are in all.
    pub of_steps: usize,
    /// First the worst of all steps, then each; rows x layers, row-major. Null where there is no such site.
    pub values: Vec<Vec<Option<f64>>>,
    /// Why cells have no number, and of which rows and layers it holds.
    pub why: Vec<Reason>,
}

#[derive(Debug, Serialize)]
pub struct Reason {
    pub text: String,
    pub cells: Vec<usize>,
}

impl Layout {
    /// The sites of a report and of an album, in the order of the graph.
    pub fn of(report: &Report, album: Option<&Album>) -> Layout {
        let mut layout =
            Layout { layers: 0, sites: Vec::new(), rows: HashMap::new(), there: Vec::new() };
        let in_graph = album.iter().flat_map(|album| &album.sites);
        let mut all: Vec<(Option<u32>, Stage)> =
            in_graph.clone().map(|site| (site.layer, site.stage)).collect();
        let ops: HashMap<(bool, Stage), (&str, Vec<&str>)> = in_graph
            .map(|site| {
                let axes = site.axes.iter().map(|axis| axis.word()).collect();
                ((site.layer.is_some(), site.stage), (site.op.as_str(), axes))
            })
            .collect();
        if all.is_empty() {
            all = report.sites.iter().map(|row| (row.place.layer, row.place.stage)).collect();
            all.dedup();
        }
        let first_layer = all.iter().position(|(layer, _)| layer.is_some()).unwrap_or(all.len());
        for (at, &(layer, stage)) in all.iter().enumerate() {
            layout.layers = layout.layers.max(layer.map_or(0, |layer| layer as usize + 1));
            let key = (layer.is_some(), stage);
            if layout.rows.contains_key(&key) {
                continue;
            }
            let known = ops.get(&key);
            let axes = known.map(|(_, axes)| axes.clone());
            let axes =
                axes.unwrap_or_else(|| stage.axes().iter().map(|axis| axis.word()).collect());
            layout.rows.insert(key, layout.sites.len());
            layout.sites.push(SiteLabel {
                name: stage.name(),
                what: name(stage),
                axes: axes.join(" x "),
                op: known.map(|(op, _)| op.to_string()),
                part: match layer {
                    Some(_) => Part::Layer,
                    None if at < first_layer => Part::Before,
                    None => Part::After,
                },
            });
        }
        layout.order();
        layout.there = vec![false; layout.sites.len() * layout.layers.max(1)];
        for (layer, stage) in all {
            let at = layout.cell(layer, stage).expect("a row was made of it");
            layout.there[at] = true;
        }
        layout
    }

    /// What comes before the layers first, what comes after them last.
    fn order(&mut self) {
        let rank = |part: Part| match part {
            Part::Before => 0,
            Part::Layer => 1,
            Part::After => 2,
        };
        let mut order: Vec<usize> = (0..self.sites.len()).collect();
        order.sort_by_key(|&row| rank(self.sites[row].part));
        let place: HashMap<usize, usize> =
            order.iter().enumerate().map(|(new, &old)| (old, new)).collect();
        self.rows.values_mut().for_each(|row| *row = place[row]);
        self.sites.sort_by_key(|site| rank(site.part));
    }

    /// The place of a site in a step's values.
    pub fn cell(&self, layer: Option<u32>, stage: Stage) -> Option<usize> {
        let row = *self.rows.get(&(layer.is_some(), stage))?;
        let column = match (layer, self.sites[row].part) {
            (Some(layer), _) => layer as usize,
            (None, Part::After) => self.layers.saturating_sub(1),
            (None, _) => 0,
        };
        Some(row * self.layers.max(1) + column)
    }

    /// The place of an operation's result.
    pub fn cell_of(&self, operation: Operation) -> Option<usize> {
        self.cell(operation.layer, operation.stage)
    }

    /// A map of these values over the steps.
    fn map(
        &self,
        limit: f64,
        steps: Vec<[usize; 2]>,
        values: impl Iterator<Item = (Site, f64, Option<String>)>,
    ) -> Map {
        let cells = self.there.len();
        let of_steps = steps.len();
        let kept = of_steps.min((MOST_CELLS / cells.max(1)).max(1));
        let blank: Vec<Option<f64>> =
            self.there.iter().map(|&there| there.then_some(UNMEASURED)).collect();
        let mut all = vec![blank; kept + 1];
        let mut why: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (site, value, reason) in values {
            let Some(at) = self.cell(site.layer, site.stage) else { continue };
            let value = rounded(value);
            let worst = &mut all[0][at];
            if worst.is_none_or(|worst| rank(value) > rank(worst)) {
                *worst = Some(value);
            }
            if let Some(own) = all.get_mut(site.step as usize + 1) {
                own[at] = Some(value);
            }
            if let Some(reason) = reason {
                let cells = why.entry(reason).or_default();
                if cells.last() != Some(&at) {
                    cells.push(at);
                }
            }
        }
        let why = why.into_iter().map(|(text, mut cells)| {
            cells.sort_unstable();
            cells.dedup();
            Reason { text, cells }
        });
        let steps = steps.into_iter().take(kept).collect();
        Map { limit, steps, of_steps, values: all, why: why.collect() }
    }
}

/// The error that each result adds, in bounds, by the engine's own steps.
pub fn added(report: &Report, album: &Album, layout: &Layout) -> Option<Map> {
    report.diagnosis.as_ref()?;
    let values = album.results.iter().map(|(&site, own)| {
        let is_judged = own.elements > 0;
        let value = if is_judged { own.times_bound } else { UNMEASURED };
        let why = "an input is NaN or was not recorded";
        (site, value, (!is_judged).then(|| why.to_string()))
    });
    let last = album.results.keys().map(|site| site.step as usize + 1).max().unwrap_or(0);
    let steps = (0..last).map(|step| own_step(report, step)).collect();
    Some(layout.map(1.0, steps, values))
}

/// The distance of every site from the reference's, in floors, by the reference's steps.
pub fn inherited(report: &Report, layout: &Layout) -> Option<Map> {
    let compared = report.compared.as_ref()?;
    let value = |row: &SiteRow| {
        let (value, why) = match &row.outcome {
            Outcome::Equal | Outcome::Diverged => (row.times_floor(), None),
            Outcome::Unmeasured(why) => (UNMEASURED, Some(why.clone())),
            Outcome::Refused(why) => (REFUSED, Some(why.clone())),
        };
        (row.place, value, why)
    };
    let last = report.sites.iter().map(|row| row.place.step as usize + 1).max().unwrap_or(0);
    let step = |step: usize| {
        let tokens = report.steps.get(step).map_or(0, |step| step.tokens.len());
        [compared.first_position(step as u32), tokens]
    };
    Some(layout.map(compared.factor, (0..last).map(step).collect(), report.sites.iter().map(value)))
}

/// The first position of one of the engine's own steps, and its tokens.
fn own_step(report: &Report, step: usize) -> [usize; 2] {
    let own = &report.engine_positions;
    let (Some(&first), Some(compared)) = (own.get(step), &report.compared) else {
        let tokens = report.steps.get(step).map_or(0, |step| step.tokens.len());
        let before = || report.steps.iter().take(step).map(|step| step.tokens.len()).sum();
        let compared = report.compared.as_ref();
        let first = compared.map_or_else(before, |compared| compared.first_position(step as u32));
        return [own.get(step).copied().unwrap_or(first), tokens];
    };
    let next = own.get(step + 1).copied();
    let last = compared.first_positions.last().zip(report.steps.last());
    let end = last.map_or(first, |(last, step)| last + step.tokens.len());
    [first, next.unwrap_or(end).saturating_sub(first)]
}

/// Whether both sides divide the tokens into the same steps.
pub fn has_same_steps(report: &Report) -> bool {
    let own = &report.engine_positions;
    report.compared.as_ref().is_none_or(|compared| {
        own.is_empty()
            || own
                .iter()
                .enumerate()
                .all(|(step, &own)| compared.first_position(step as u32) == own)
    })
}

/// Three digits: more are not seen.
fn rounded(x: f64) -> f64 {
    if x <= 0.0 {
        return x;
    }
    if !x.is_finite() {
        return INFINITE;
    }
    format!("{x:.2e}").parse().unwrap_or(x)
}

/// What is no number is worse than any number, and that worse than nothing.
fn rank(value: f64) -> f64 {
    if value == INFINITE {
        f64::INFINITY
    } else if value == REFUSED {
        -0.5
    } else {
        value
    }
}
