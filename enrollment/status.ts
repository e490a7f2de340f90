import type { StatusView } from '#shared/api'
import { VERSION } from './config.ts'
import type { Deps } from './deps.ts'
import { caAlarms } from './trust.ts'

/** So long an attempt on a token that is over stays an alarm, ms; and so many are shown. */
const ALARM_MS = 7 * 86_400_000
const ALARMS = 20

/** The plane at a glance. */
export async function status(deps: Deps): Promise<StatusView> {
  const now = deps.now()
  const { registry, authority, revocationLists, ocsp } = deps
  const { holds, refusedLastHour, ...devices } = await registry.counts(now)
  const revocationList = revocationLists.current
  const crl = revocationList.published
  return {
    version: VERSION,
    trustDomain: authority.trustDomain,
    cursor: await registry.cursor(),
    devices,
    holds,
    refusedLastHour,
    brokers: deps.brokerFaults.in(await registry.listBrokers(now)),
    crl: {
      number: crl?.number ?? 0,
      nextUpdate: crl?.nextUpdate ?? 0,
      entries: crl?.entries ?? 0,
      url: revocationList.url,
      shards: revocationList.shards,
      earliestNextUpdate: revocationList.nextUpdate ?? 0,
    },
    ocsp: { url: authority.device.ocspUrl ?? '', notAfter: ocsp.notAfter, presigned: ocsp.presigned },
    certificates: [
      { name: 'device CA', notAfter: authority.device.notAfter },
      { name: 'infrastructure CA', notAfter: authority.infrastructure.notAfter },
    ],
    alarms: caAlarms(authority.cas, now),
    cloneAlarms: await registry.cloneAlarms({ since: now - ALARM_MS, limit: ALARMS }),
    bootstrapAlarms: await registry.bootstrapAlarms({ since: now - ALARM_MS, limit: ALARMS }),
  }
}
