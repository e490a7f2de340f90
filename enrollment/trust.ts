import { X509Certificate } from 'node:crypto'
import type { CaReply } from '#shared/api'
import type { CaAlarm, CaView } from '#shared/api/rollover'
import { isMusterError } from '#shared/errors'
import { sha256Hex, spkiDer } from '#shared/pki/keys'
import type { Deps } from './deps.ts'
import type { Generations } from './generations.ts'

/** What a device fetches to trust the plane, as JSON. */
export function caReply({ authority }: Pick<Deps, 'authority'>): CaReply {
  const { trustDomain, rootPem, bundle } = authority
  const { version, roots, links, devices, infrastructures } = bundle
  return {
    trustDomain,
    version,
    root: rootPem,
    roots: [...roots],
    certificates: [...roots, ...devices, ...infrastructures, ...links],
  }
}

/** The same for EST (RFC 7030 section 4.1.3): during a rollover of the root all four of old and new. PEM. */
export function caCertificates({ bundle }: Generations): readonly string[] {
  return [
    ...bundle.roots.slice(0, 1),
    ...bundle.devices.slice(0, 1),
    ...bundle.roots.slice(1),
    ...bundle.links,
    ...bundle.devices.slice(1),
  ]
}

/**
 * Lets brokers tell devices what to trust, from the first rollover on: before it there is nothing that a device was not
 * made with. Repeated at every start, because a crash may have come between the step of the rollover and this.
 */
export async function publishTrust({
  registry,
  authority,
  now,
}: Pick<Deps, 'registry' | 'authority' | 'now'>): Promise<void> {
  const { version, roots, links } = authority.bundle
  if (version === 1) return
  await registry.recordTrust({ version, roots: [...roots], links: [...links] }, { now: now(), by: 'plane' })
}

/** A device that fetched the bundle with its certificate has it. A registry that cannot note it keeps it from nobody. */
export async function noteAdoption(
  deps: Pick<Deps, 'registry' | 'authority' | 'now' | 'log'>,
  device: string,
): Promise<void> {
  try {
    await deps.registry.recordAdoption(device, deps.authority.bundle.version, deps.now())
  } catch (error) {
    if (!isMusterError(error, 'unavailable')) throw error
    deps.log.error({ err: error }, 'adoption not recorded')
  }
}

/** SHA-256 of the keys of the CAs: no device may have one of them. */
export function caKeysOf({ cas }: Pick<Generations, 'cas'>): string[] {
  return cas.map(({ pem }) => sha256Hex(spkiDer(new X509Certificate(pem).publicKey)))
}

const DAY_MS = 86_400_000
/** Days before the end of a CA at which an alarm begins; 0 when it has ended. */
const ALARM_DAYS = [0, 7, 30, 90] as const
const ROLE_NAMES = { root: 'root CA', device: 'device CA', infrastructure: 'infrastructure CA' } as const

/** The CAs that sign and end soon, each with the alarm that it has reached. One that is being replaced alarms until it is. */
export function caAlarms(cas: readonly CaView[], now: number): CaAlarm[] {
  return cas.flatMap(({ id, role, notAfter, isCurrent }) => {
    const withinDays = ALARM_DAYS.find((days) => notAfter - now <= days * DAY_MS)
    if (!isCurrent || withinDays === undefined) return []
    return [{ name: ROLE_NAMES[role], id, notAfter, withinDays }]
  })
}

/** Logs an alarm when it begins, once a run of the service. */
export function openAlarms(deps: Pick<Deps, 'authority' | 'log' | 'now'>): () => void {
  const told = new Set<string>()
  return () => {
    for (const alarm of caAlarms(deps.authority.cas, deps.now())) {
      const key = `${alarm.id} ${alarm.withinDays}`
      if (told.has(key)) continue
      told.add(key)
      deps.log.warn({ ...alarm }, 'a CA ends soon: muster ca rollover start')
    }
  }
}
