/** Enrollments while the service is killed again and again; the short and the long form are this, in numbers. */
import { X509Certificate } from 'node:crypto'
import { join } from 'node:path'
import type { Test } from 'tap'
import { openAdminClient, readOperatorProfile } from '#shared/admin-client'
import { layout } from '#shared/layout'
import { openSqliteForReading } from '#shared/sqlite'
import { startLoad } from './enrollment-load.ts'
import {
  type EnrollmentPlace,
  type EnrollmentProcess,
  serveEnrollment,
  spawnEnrollment,
} from './enrollment-process.ts'
import { freePortBase, scratch } from './muster.ts'
import { faultsOf, replayFaults, Told } from './registry-invariants.ts'

export interface KillsOptions {
  readonly devices: number
  readonly kills: number
  readonly inFlight: number
  /** Of the instants; the same seed kills at the same times. */
  readonly seed: number
}

/** Longest time between an enrollment and the kill that follows it, ms. */
const KILL_WITHIN_MS = 60
/** Every so many kills hit a service that is still starting, too. */
const KILL_STARTING = 8
/** Every so many kills the whole journal is replayed and compared. */
const REPLAY = 25

/** Deterministic numbers in [0, 1) (mulberry32). */
export function seeded(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296
  }
}

/** Everybody enrolls, and after each restart everything holds that must hold. */
export async function surviveKills(t: Test, options: KillsOptions): Promise<void> {
  const { devices, kills, inFlight, seed } = options
  const place = { data: join(scratch(t), 'data'), portBase: await freePortBase() }
  const random = seeded(seed)
  const told = new Told()
  const first = await serveEnrollment(t, place)
  const { token } = await first.admin.createToken({ batch: 'lab', uses: devices })
  const load = startLoad({
    ...place,
    devices,
    inFlight,
    token,
    told,
    random: seeded(seed + 1),
    root: first.root,
  })
  const readyMs: number[] = []
  let service: EnrollmentProcess = first
  for (let kill = 1; kill <= kills; kill++) {
    await load.until(Math.floor((devices * kill) / (kills + 1)))
    await pause(random() * KILL_WITHIN_MS)
    await service.kill()
    if (kill % KILL_STARTING === 0) await killWhileStarting(t, place, random() * (readyMs.at(-1) ?? 1_000))
    if (kill % REPLAY === 0) t.strictSame(replayFaults(place.data), [], `the journal after kill ${kill}`)
    service = spawnEnrollment(t, place)
    readyMs.push(await service.ready)
    const faults = faultsOf(place.data, told)
    if (faults.length > 0) t.fail(`after kill ${kill}`, { faults })
    if (kill % Math.ceil(kills / 20) === 0)
      t.comment(JSON.stringify({ kill, ...load.progress, ...figures(readyMs) }))
  }
  await load.ended
  t.strictSame(load.faults, [], 'no device heard anything but its certificate, or that it may come back')
  t.equal(load.progress.enrolled, devices, 'everybody is enrolled')
  t.ok(load.progress.renewed > 0 && told.revoked.size > 0, 'some have renewed, some are revoked')
  await checkEnd(t, { place, token, devices, told })
  await service.stop()
  t.strictSame(faultsOf(place.data, told), [])
  t.strictSame(replayFaults(place.data), [], 'the journal alone makes the registry again')
  t.comment(
    JSON.stringify({
      seed,
      kills: kills + Math.floor(kills / KILL_STARTING),
      ...load.progress,
      ...figures(readyMs),
    }),
  )
}

async function killWhileStarting(t: Test, place: EnrollmentPlace, afterMs: number): Promise<void> {
  const service = spawnEnrollment(t, place)
  await pause(afterMs)
  await service.kill()
}

/** What the service says of itself, and the token in the registry, when all is over. */
async function checkEnd(
  t: Test,
  { place, token, devices, told }: { place: EnrollmentPlace; token: string; devices: number; told: Told },
): Promise<void> {
  const admin = openAdminClient(readOperatorProfile(layout(place.data).operatorProfile))
  t.match(await admin.verifyAudit(), { ok: true, firstBad: null })
  const [view] = await admin.listTokens('lab')
  t.match(view, { uses: devices, used: devices, state: 'spent' }, `the token ${token.slice(0, 4)}… is spent`)
  await admin.close()
  const db = openSqliteForReading(layout(place.data).registry, 5_000)
  const count = (query: string) => db.prepare<[], number>(query).pluck().get()
  t.equal(count(`SELECT count(*) FROM devices WHERE batch = 'lab'`), devices, 'no device too many')
  t.equal(
    count(`SELECT count(*) FROM certificates WHERE der IS NOT NULL`),
    told.certificates.size,
    'nor certificate',
  )
  db.close()
  const names = new Set([...told.certificates.values()].map((pem) => new X509Certificate(pem).serialNumber))
  t.equal(names.size, told.certificates.size, 'no serial twice')
}

/** Times from the spawn to ready, ms. */
function figures(readyMs: readonly number[]): { readyP50Ms: number; readyMaxMs: number } {
  const sorted = readyMs.toSorted((a, b) => a - b)
  const at = (share: number) =>
    Math.round(sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0)
  return { readyP50Ms: at(0.5), readyMaxMs: at(1) }
}

const pause = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms))
