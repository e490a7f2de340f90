import type { Test } from 'tap'
import type { Registry } from '../../enrollment/registry/registry.ts'
import { type Plane, planeOf } from '../support/registry-plane.ts'
import { approvalContract } from './registry/approval.ts'
import { atOnceContract } from './registry/at-once.ts'
import { batchReportContract } from './registry/batch-report.ts'
import { bootstrapContract } from './registry/bootstrap.ts'
import { brokersContract } from './registry/brokers.ts'
import { devicesContract } from './registry/devices.ts'
import { enrollmentContract } from './registry/enrollment.ts'
import { eventsContract } from './registry/events.ts'
import { finalisingContract } from './registry/finalising.ts'
import { fleetsContract } from './registry/fleets.ts'
import { keysContract } from './registry/keys.ts'
import { manifestContract } from './registry/manifest.ts'
import { plansContract } from './registry/plans.ts'
import { purgesContract } from './registry/purges.ts'
import { racesContract } from './registry/races.ts'
import { renewalContract } from './registry/renewal.ts'
import { reportsContract } from './registry/reports.ts'
import { revocationContract } from './registry/revocation.ts'
import { rolloversContract } from './registry/rollovers.ts'
import { rotationsContract } from './registry/rotations.ts'
import { serverKeysContract } from './registry/server-keys.ts'
import { streamContract } from './registry/stream.ts'
import { tokensContract } from './registry/tokens.ts'

/** Where a registry keeps its data; each call opens one more instance on it, which the caller closes. */
export interface Storage {
  open(): Promise<Registry>
}

/** A new, empty registry for each test, and as many more instances on the same data as it wants. */
export type Fresh = (t: Test) => Promise<Plane & { another(name: string): Promise<Plane> }>

/** What every implementation of the port must do. `create` makes a new, empty storage for one test. */
export async function registryContract(t: Test, create: (t: Test) => Promise<Storage>): Promise<void> {
  const fresh: Fresh = async (t) => {
    const storage = await create(t)
    const open = async (name: string) => {
      const registry = await storage.open()
      t.teardown(() => registry.close())
      return planeOf(registry, name)
    }
    return { ...(await open('a')), another: open }
  }
  const parts = {
    'fleets and batches': fleetsContract,
    tokens: tokensContract,
    events: eventsContract,
    enrollment: enrollmentContract,
    'issuing in one commit': atOnceContract,
    approval: approvalContract,
    manifests: manifestContract,
    'claims and manufacturers': bootstrapContract,
    'reports of batches': batchReportContract,
    renewal: renewalContract,
    'devices and services': devicesContract,
    keys: keysContract,
    'keys that the plane makes': serverKeysContract,
    rotations: rotationsContract,
    plans: plansContract,
    'what plans take': purgesContract,
    finalising: finalisingContract,
    'revocation data': revocationContract,
    'what brokers saw': reportsContract,
    'brokers, operators, issuers': brokersContract,
    rollovers: rolloversContract,
    'the stream': streamContract,
    races: racesContract,
  } satisfies Record<string, (t: Test, fresh: Fresh) => Promise<void>>
  for (const [title, part] of Object.entries(parts)) await t.test(title, (t) => part(t, fresh))
}
