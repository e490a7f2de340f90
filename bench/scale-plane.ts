import { MusterError } from '#shared/errors'
import { generateKey, privateKeyPem } from '#shared/pki/keys'
import { type BrokerUnderTest, startBroker } from './broker.ts'
import type { BenchContext } from './harness.ts'
import { type LagProbe, lagProbe } from './lag.ts'
import { keepAlive, type Load } from './load.ts'
import { newDirectory, type Plane, startPlane } from './plane.ts'
import { differences } from './registry-compare.ts'
import { checkAdded, loadDevices, rowCounts } from './registry-load.ts'
import { type DevicePair, newCsr, post } from './requests.ts'

const TOKEN_USES = 10_000_000
/** Loaded devices that are compared with one that has really enrolled. */
const SAMPLES = 10

/** A plane with so many recorded devices, and what it took to start. */
export interface ScalePlane {
  readonly devices: number
  readonly plane: Plane
  readonly broker: BrokerUnderTest
  readonly token: string
  readonly lag: { readonly enrollment: LagProbe; readonly broker: LagProbe }
}

/**
 * A plane whose registry is filled with copies of a device that has really enrolled. It is compared with another one
 * that has, before anything is measured.
 * @throws MusterError check_failed when the loader does not write what issuing writes
 */
export async function scalePlane(context: BenchContext, devices: number): Promise<ScalePlane> {
  const data = newDirectory(context)
  const token = await fill(context, { data, devices })
  const lag = { enrollment: lagProbe(context), broker: lagProbe(context) }
  const plane = await startPlane(context, { data, options: lag.enrollment.options })
  const broker = await startBroker(context, { plane, options: lag.broker.options })
  return { devices, plane, broker, token, lag }
}

async function fill(
  context: BenchContext,
  { data, devices }: { data: string; devices: number },
): Promise<string> {
  const [like, enrolled] = ['scale-0000000', 'scale-9999999']
  const plane = await startPlane(context, { data })
  const { token } = await plane.admin.createToken({ batch: 'bench', uses: TOKEN_USES })
  const { registry } = plane.layout
  const before = rowCounts(registry)
  await enroll(plane, { token, ids: [like] })
  checkAdded(before, rowCounts(registry))
  await enroll(plane, { token, ids: [enrolled] })
  await plane.server.stop()
  const begun = performance.now()
  loadDevices(registry, { like, count: devices })
  context.say(`  ${devices} devices in ${Math.round(performance.now() - begun)} ms`)
  for (let sample = 1; sample <= SAMPLES; sample++) {
    const number = Math.ceil((devices * sample) / SAMPLES)
    const loaded = `scale-${String(number).padStart(7, '0')}`
    const wrong = differences(registry, { loaded, enrolled })
    if (wrong.length === 0) continue
    throw new MusterError('check_failed', `Cannot use the loaded registry: ${loaded} differs in ${wrong}`)
  }
  return token
}

/** Enrolls devices really, and returns what they connect with. */
export async function enroll(
  plane: Plane,
  { token, ids }: { token: string; ids: readonly string[] },
): Promise<DevicePair[]> {
  const keys = new Map(ids.map((id) => [id, generateKey()]))
  const requests = Array.from(keys, ([id, key]) =>
    post('/v1/enroll', { type: 'application/json', body: JSON.stringify({ token, csr: newCsr(id, key) }) }),
  )
  const pairs: DevicePair[] = []
  const check: Load['check'] = ({ status, body }) => {
    if (status !== 200) throw new Error(`an enrollment was answered with ${status}: ${body.slice(0, 300)}`)
    const { device: id, certificate } = JSON.parse(body) as { device: string; certificate: string } // the API says so
    const key = keys.get(id)
    if (key) pairs.push({ id, certificate, key: privateKeyPem(key) })
  }
  await keepAlive(plane.target, { requests, connections: 16, check })
  return pairs
}
