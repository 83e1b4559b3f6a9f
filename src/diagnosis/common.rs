//! What the weights of guilty operations have in common, and those of right ones lack.

use std::collections::BTreeSet;

use super::{
    blame::Guilty,
    cause::Certainty,
    replay::{GraphRun, Operation},
};
use crate::{graph::SiteSpec, model::gguf::type_name};

/// Guilty operations of which something in common says more than of one alone.
const LEAST: usize = 2;

/// Says of guilty operations without a cause that their weights are all of one type, where no right one has such a
/// weight. `is_right` tells which operations are.
pub fn note_types(run: GraphRun<'_>, guilty: &mut [Guilty], is_right: &dyn Fn(Operation) -> bool) {
    let types = |spec: &SiteSpec| -> BTreeSet<u32> {
        let names = run.model.weights_of(spec).into_iter();
        let infos =
            names.filter_map(|name| run.file.info(&name).ok().filter(|info| info.rows() > 1));
        infos.map(|info| info.ggml_type).collect()
    };
    let specs = run.model.sites.specs();
    let operation = |spec: &SiteSpec| Operation { layer: spec.layer, stage: spec.stage };
    let of_right: BTreeSet<u32> =
        specs.iter().filter(|spec| is_right(operation(spec))).flat_map(types).collect();
    let unexplained =
        |one: &&mut Guilty| matches!(one.cause.certainty, Certainty::Unknown | Certainty::Partly);
    let mut noted: Vec<&mut Guilty> = Vec::new();
    let mut common: Option<BTreeSet<u32>> = None;
    for one in guilty.iter_mut().filter(unexplained) {
        let site = one.judged.operation.site(0);
        let own = run.model.sites.get(site).map(types).unwrap_or_default();
        if own.is_empty() {
            continue;
        }
        common = Some(common.map_or_else(|| own.clone(), |all| &all & &own));
        noted.push(one);
    }
    let Some(of_guilty) = common.and_then(|all| all.difference(&of_right).next().copied()) else {
        return;
    };
    if noted.len() < LEAST || of_right.is_empty() {
        return;
    }
    let sign = format!(
        "every weight here is {}, unlike those of the correct operations",
        type_name(of_guilty)
    );
    noted.into_iter().for_each(|one| one.cause.signs.push(sign.clone()));
}
