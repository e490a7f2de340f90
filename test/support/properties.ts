/**
 * The only importer of fast-check: every property begins with the same seed, so that a run is like the one before it, and
 * one that fails fails again. Another one with `MUSTER_SEED=<n>`; with `MUSTER_SEED=random` each process takes its own, and
 * a failure says which.
 */
import fc from 'fast-check'

const SEED = 20_260_101
const { MUSTER_SEED: chosen = '' } = process.env

if (chosen !== 'random') fc.configureGlobal({ seed: /^-?\d{1,10}$/.test(chosen) ? Number(chosen) : SEED })

export default fc
