import { join } from 'node:path'
import { isDeviceId } from '#shared/identity/device'
import { type Random, seededRandom } from './backoff.ts'
import { Credentials } from './credential.ts'
import { Device, type DeviceDeps } from './device.ts'

export interface FleetOptions {
  /** Every device has a directory of its own in it. */
  readonly directory: string
  /** Ids are `<prefix>-0001` and so on. */
  readonly prefix: string
  readonly count: number
  readonly seed: string
  readonly deps: Omit<DeviceDeps, 'random'>
}

export interface Fleet {
  readonly devices: readonly Device[]
  stop(): Promise<void>
}

/** Sockets that are closed at a time when the fleet stops. */
const STOP_CONCURRENCY = 200

export function openFleet(options: FleetOptions): Fleet {
  const digits = Math.max(4, String(options.count).length)
  const devices = Array.from({ length: options.count }, (_, index) =>
    openDevice(`${options.prefix}-${String(index + 1).padStart(digits, '0')}`, options),
  )
  return {
    devices,
    stop: () => inParallel(devices, { limit: STOP_CONCURRENCY, work: (device) => device.stop() }),
  }
}

/** A device with its own directory and its own randomness. @throws RangeError when the id cannot be one */
export function openDevice(id: string, options: Pick<FleetOptions, 'directory' | 'seed' | 'deps'>): Device {
  if (!isDeviceId(id)) throw new RangeError(`"${id}" cannot be a device id`)
  const random: Random = seededRandom(`${options.seed}/${id}`)
  const credentials = Credentials.open(join(options.directory, id))
  return new Device(id, { credentials, deps: { ...options.deps, random } })
}

/** Works through the items in order, at most `limit` at a time; rejects with the first failure, when all have ended. */
export async function inParallel<Item>(
  items: readonly Item[],
  options: { limit: number; work: (item: Item) => Promise<void> },
): Promise<void> {
  const queue = items.values()
  const failures: unknown[] = []
  const worker = async () => {
    for (const item of queue) await options.work(item).catch((error: unknown) => failures.push(error))
  }
  await Promise.all(Array.from({ length: Math.min(options.limit, items.length) }, worker))
  if (failures.length > 0) throw failures[0]
}
