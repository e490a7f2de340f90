import { setImmediate } from 'node:timers/promises'
import type { Adoption, CaTree, RolloverStatus, RolloverView } from '#shared/api/rollover'
import { MusterError } from '#shared/errors'
import { sha256Hex } from '#shared/pki/keys'
import { pemToDer, splitPem } from '#shared/pki/pem'
import type { IssuerRequest } from './ca/awaited-issuers.ts'
import type { Deps } from './deps.ts'
import { OWN_LIFETIME_MS } from './own-certificates.ts'
import type { Actor, RolloverRecord } from './registry/registry.ts'
import { refuseEnded, turnWhenEnded } from './rollover-ends.ts'

/** Share of the devices that must have the new bundle before the new CAs sign, unless the operator says otherwise. */
const THRESHOLD = 0.99
/** Devices that are counted in one turn of the event loop. */
const SLICE = 5_000
/** Devices that are named when they keep a rollover from going on. */
const NAMED = 20
/** A request that has begun before the step may still reserve a certificate of the CA that signed then, ms. */
const SETTLE_MS = 60_000

export interface RolloverStart {
  readonly root?: boolean
  readonly lifetimeMs?: number
  /** What a root that is kept elsewhere has signed, PEM; it says itself of what kind the rollover is. */
  readonly certificates?: readonly string[]
  readonly by: Actor
}

/**
 * Makes the CAs that are to follow and publishes them; the old ones go on signing. The same request again, while they
 * are published and no more, finds that rollover. See docs/rollover.md.
 * @throws MusterError conflict (another one is under way; the key of the root is not here), clock_wrong
 */
export async function startRollover(deps: Deps, request: RolloverStart): Promise<RolloverView> {
  const now = deps.now()
  deps.signingClock.check(now)
  const newest = await newestRollover(deps)
  if (newest && newest.endedAt === null) {
    if (!isThisRequest(deps, { newest, request })) throw underWay(newest)
    return follow(deps, newest)
  }

  // 1 keys and certificates on disk: they count for nothing until the registry names them
  const next = await prepare(deps, request, now)
  deps.reached('rollover-start.1')

  // 2 one intent: recorded, audited, brokers trust them, the bundle has a new version
  const id = `rollover-${deps.random(4).toString('hex')}`
  const rollover = await deps.registry.startRollover({ id, ...next, now, by: request.by })
  deps.reached('rollover-start.2')

  // 3 listeners, lists and bundle
  return follow(deps, rollover)
}

async function prepare({ authority }: Deps, request: RolloverStart, now: number) {
  const { lifetimeMs, certificates } = request
  if (certificates) return authority.accept(certificates.flatMap(splitPem), now)
  const kind = request.root ? ('root' as const) : ('issuing' as const)
  const life = lifetimeMs === undefined ? {} : { lifetimeMs }
  return { kind, ...(await authority.prepare(kind, { now, ...life })) }
}

/** Requests for the CAs that are to follow, for a root that is kept elsewhere; the same ones until a CA has their keys. */
export function requestIssuers({ authority }: Deps): Promise<IssuerRequest[]> {
  return authority.requestNext()
}

/**
 * The new CAs sign from now on, when enough devices have the bundle that names them; also those of a rollover that is
 * being aborted. Again, it changes nothing.
 * @throws MusterError conflict (too few; none is published; the new CAs have ended), clock_wrong
 */
export async function cutOver(deps: Deps, request: { threshold?: number; by: Actor }): Promise<RolloverView> {
  const { threshold = THRESHOLD, by } = request
  const open = await openRollover(deps)
  const { id, to } = open
  if (open.state === 'cut-over') return follow(deps, open)
  refuseEnded(deps, { generation: to, to: 'cut over to', fix: 'muster ca rollover abort' })
  const adoption = await countAdoption(deps, id)
  if (adoption.adopted < adoption.devices * threshold) throw tooFew(adoption, threshold)
  deps.reached('rollover-cut-over.1')
  const rollover = await deps.registry.cutOverRollover(id, adoption, { now: deps.now(), by })
  deps.reached('rollover-cut-over.2')
  return follow(deps, rollover)
}

/**
 * The old CAs sign again, or go on signing. What the new ones signed stays good until it is finished. Again, it changes
 * nothing.
 * @throws MusterError conflict (none is under way; the old CAs have ended)
 */
export async function abortRollover(deps: Deps, { by }: { by: Actor }): Promise<RolloverView> {
  const newest = await newestRollover(deps)
  if (newest?.state === 'aborting' || newest?.state === 'aborted') return follow(deps, newest)
  const { id, from, state } = await openRollover(deps)
  const fix = state === 'published' ? 'muster ca rollover cut-over' : 'muster ca rollover finish'
  refuseEnded(deps, { generation: from, to: 'go back to', fix })
  deps.reached('rollover-abort.1')
  const rollover = await deps.registry.abortRollover(id, { now: deps.now(), by })
  deps.reached('rollover-abort.2')
  return follow(deps, rollover)
}

/**
 * Ends the trust in the CAs that no longer sign, when nothing good is left of them. Again, it changes nothing.
 * @throws MusterError conflict
 */
export async function finishRollover(deps: Deps, { by }: { by: Actor }): Promise<RolloverView> {
  const newest = await newestRollover(deps)
  const wasTurned = newest !== undefined && newest.cutOverAt !== null
  if (newest?.state === 'finished' || (newest?.state === 'aborted' && wasTurned)) return follow(deps, newest)
  const open = await openRollover(deps)
  if (open.state === 'published') throw notTurned(open)
  const notBefore = finishNotBefore(deps, open)
  const now = deps.now()
  if (notBefore !== null && now < notBefore) {
    throw new MusterError(
      'conflict',
      `Cannot finish the rollover "${open.id}" before ${new Date(notBefore).toISOString()}: certificates of the CAs that go are still in use`,
    )
  }
  deps.reached('rollover-finish.1')
  const rollover = await deps.registry.finishRollover(open.id, { now, by })
  deps.reached('rollover-finish.2')
  return follow(deps, rollover)
}

/** What follows when the CAs that sign have ended: those that are to follow sign, or those that there were before. */
export function followEnds(deps: Pick<Deps, 'registry' | 'authority' | 'now'>): Promise<boolean> {
  return turnWhenEnded(deps, ({ id }) => countAdoption(deps, id))
}

/** How far the newest rollover is, and what it waits for. */
export async function rolloverStatus(deps: Deps): Promise<RolloverStatus> {
  const rollover = await newestRollover(deps)
  const bundleVersion = deps.authority.bundle.version
  if (!rollover) return { bundleVersion, rollover: null, adoption: null, retiring: null }
  const view = rolloverView(rollover)
  if (rollover.endedAt !== null) return { bundleVersion, rollover: view, adoption: null, retiring: null }
  const issuer = rollover.state === 'aborting' ? rollover.to.device : rollover.from.device
  const live = await deps.registry.liveUnder(issuer, deps.now())
  return {
    bundleVersion,
    rollover: view,
    adoption: await countAdoption(deps, rollover.id),
    retiring: { issuer, live, notBefore: finishNotBefore(deps, rollover) },
  }
}

/** Every CA that there ever was, the first ones first. */
export function caTree({ authority }: Deps): CaTree {
  return { bundleVersion: authority.bundle.version, cas: [...authority.cas] }
}

/** Other work gets its turn between slices: there may be a million devices. */
async function countAdoption(deps: Pick<Deps, 'registry' | 'now'>, id: string): Promise<Adoption> {
  const now = deps.now()
  const sum = { devices: 0, adopted: 0, waiting: [] as string[] }
  for (let after: number | null = 0; after !== null; ) {
    const page = await deps.registry.adoptionAfter(id, { after, limit: SLICE, now })
    sum.devices += page.devices
    sum.adopted += page.adopted
    sum.waiting.push(...page.waiting.slice(0, NAMED - sum.waiting.length))
    after = page.next
    if (after !== null) await setImmediate()
  }
  return sum
}

/** Also what is repeated: a crash may have come between the step and this. */
async function follow({ authority, registry, now }: Deps, rollover: RolloverRecord): Promise<RolloverView> {
  await authority.follow(() => registry.listRollovers(), now())
  return rolloverView(rollover)
}

async function newestRollover({ registry }: Pick<Deps, 'registry'>): Promise<RolloverRecord | undefined> {
  return (await registry.listRollovers()).at(-1)
}

/** True when the rollover is what the request asks for: its reply was lost, perhaps with the process. */
function isThisRequest(
  { authority }: Deps,
  { newest, request }: { newest: RolloverRecord; request: RolloverStart },
): boolean {
  const { state, kind, to } = newest
  const pems = request.certificates?.flatMap(splitPem)
  if (state !== 'published') return false
  if (pems) return pems.some((pem) => sha256Hex(pemToDer(pem, 'CERTIFICATE')) === to.device)
  if ((kind === 'root') !== (request.root ?? false)) return false
  const device = authority.cas.find(({ id }) => id === to.device)
  const root = authority.cas.find(({ id }) => id === to.root)
  if (request.lifetimeMs === undefined || device === undefined) return true
  return device.notAfter === root?.notAfter || device.notAfter - device.notBefore === request.lifetimeMs
}

/** Null while the CAs that are to go still sign. The plane's own certificates have to go first: nobody counts them. */
function finishNotBefore({ authority }: Deps, rollover: RolloverRecord): number | null {
  const { state, from, to, cutOverAt, abortedAt } = rollover
  const turnedAt = state === 'cut-over' ? cutOverAt : abortedAt
  if (turnedAt === null) return null
  const { infrastructure } = state === 'cut-over' ? from : to
  const end = authority.cas.find(({ id }) => id === infrastructure)?.notAfter ?? Number.POSITIVE_INFINITY
  return Math.max(turnedAt + SETTLE_MS, Math.min(turnedAt + OWN_LIFETIME_MS, end))
}

/** @throws MusterError conflict */
async function openRollover(deps: Deps): Promise<RolloverRecord> {
  const newest = await newestRollover(deps)
  if (newest && newest.endedAt === null) return newest
  throw new MusterError(
    'conflict',
    'Cannot go on with a rollover: none is under way; fix: muster ca rollover start',
  )
}

function underWay({ id, state }: RolloverRecord): MusterError {
  return new MusterError(
    'conflict',
    `Cannot start a rollover: "${id}" is under way (${state}); fix: finish it, or muster ca rollover abort`,
  )
}

function notTurned({ id }: RolloverRecord): MusterError {
  return new MusterError(
    'conflict',
    `Cannot finish the rollover "${id}": it is published, and the old CAs still sign; fix: muster ca rollover cut-over, or abort`,
  )
}

function tooFew({ devices, adopted, waiting }: Adoption, threshold: number): MusterError {
  const percent = (share: number) => `${Math.floor(share * 1000) / 10} %`
  const shown = waiting.slice(0, 5).join(', ')
  return new MusterError(
    'conflict',
    `Cannot cut over: ${adopted} of ${devices} devices (${percent(adopted / devices)}) have the new trust bundle, ${percent(threshold)} are needed; missing: ${shown}`,
  )
}

function rolloverView(record: RolloverRecord): RolloverView {
  const { version: _version, certificates: _certificates, ...view } = record
  return view
}
