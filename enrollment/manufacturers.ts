import { X509Certificate } from 'node:crypto'
import type {
  ManufacturedEntry,
  ManufacturedReply,
  ManufacturedRequest,
  ManufacturerRequest,
  ManufacturerView,
  RowVerdict,
} from '#shared/api'
import { MusterError } from '#shared/errors'
import { isDeviceId } from '#shared/identity/device'
import { sha256Hex } from '#shared/pki/keys'
import { derToPem, pemToDer } from '#shared/pki/pem'
import { isSerialNumber, readCertificateSerial, readIdevidCa } from './ca/idevid.ts'
import type { Deps } from './deps.ts'
import type { Actor, ManufacturedRow } from './registry/registry.ts'
import { cancelToken, expiry } from './tokens.ts'

/**
 * Lets the devices of a manufacturer enroll in a batch, as far as they are listed: nobody yet.
 * @throws MusterError invalid_request, not_found (the batch), conflict
 */
export async function addManufacturer(
  deps: Deps,
  request: ManufacturerRequest & { by: Actor },
): Promise<ManufacturerView> {
  const { id, batch, by } = request
  const now = deps.now()
  const { ca, certificate, tbs } = readIdevidCa(derOf(request.ca), id)
  refuseOwn(deps, certificate)
  if (now >= tbs.notAfter + 1000) {
    throw new MusterError('invalid_request', `Cannot register the CA of "${id}": it has expired`)
  }
  const view = await deps.registry.createManufacturer({
    id,
    hash: sha256Hex(`manufacturer ${id}`),
    batch,
    expiresAt: expiry(request.expiresAt, { now, otherwise: null }),
    ca,
    pem: derToPem(certificate.raw, 'CERTIFICATE'),
    now,
    by,
  })
  await deps.manufacturers.refresh()
  return view
}

/** None of its devices enrolls any more; those that have stay. @throws MusterError not_found */
export async function cancelManufacturer(
  deps: Deps,
  { id, by }: { id: string; by: Actor },
): Promise<ManufacturerView> {
  const find = async () => {
    const found = (await deps.registry.listManufacturers(deps.now())).find((one) => one.id === id)
    if (found !== undefined) return found
    throw new MusterError('not_found', `Cannot find the manufacturer "${id}"`)
  }
  await find()
  await cancelToken(deps, { id, by })
  return find()
}

/** @throws MusterError invalid_request */
function derOf(pem: string): Buffer {
  try {
    return pemToDer(pem, 'CERTIFICATE')
  } catch (cause) {
    throw new MusterError('invalid_request', 'Cannot read the CA: it is not one certificate in PEM', {
      cause,
    })
  }
}

/**
 * A CA with the name or the key of ours would make the two be taken for each other: by TLS, or by us.
 * @throws MusterError conflict
 */
function refuseOwn({ authority }: Deps, certificate: X509Certificate): void {
  const key = (of: X509Certificate) => of.publicKey.export({ type: 'spki', format: 'der' }).toString('hex')
  const isOurs = authority.cas.some(({ pem }) => {
    const own = new X509Certificate(pem)
    return own.subject === certificate.subject || key(own) === key(certificate)
  })
  if (isOurs)
    throw new MusterError(
      'conflict',
      'Cannot register the CA: it has the name or the key of a CA of this plane',
    )
}

/**
 * Lists a slice of devices: every one, or none when a row is refused. The reply judges each row.
 * @throws MusterError not_found (the manufacturer), conflict (it is cancelled)
 */
export async function listManufactured(
  deps: Deps,
  request: ManufacturedRequest & { manufacturer: string; by: Actor },
): Promise<ManufacturedReply> {
  const { manufacturer, by, dryRun = false } = request
  const read = request.rows.map(readRow)
  const well = read.flatMap((row, at) => ('fault' in row ? [] : [{ at, row }]))
  const reply = await deps.registry.listManufactured({
    manufacturer,
    rows: well.map(({ row }) => row),
    isRehearsal: dryRun || well.length < read.length,
    now: deps.now(),
    by,
  })
  const verdicts = new Map(reply.rows.map((verdict, at) => [well[at]?.at, verdict]))
  return {
    ...reply,
    rows: read.map((row, at): RowVerdict => {
      const verdict = verdicts.get(at)
      if (verdict !== undefined) return { ...verdict, row: at + 1 }
      const reason = 'fault' in row ? row.fault : null
      return { row: at + 1, id: row.id, verdict: 'refused', code: 'invalid_request', reason }
    }),
  }
}

/** What a row means, or what is wrong with its form. */
function readRow(entry: ManufacturedEntry): ManufacturedRow | { id: string; fault: string } {
  const { serialNumber = null, certificateSerial: written = null } = entry
  const id = entry.id ?? serialNumber ?? ''
  if (serialNumber === null && written === null) return { id, fault: 'Cannot list it: it has no number' }
  if (serialNumber !== null && !isSerialNumber(serialNumber)) {
    return {
      id,
      fault: 'Cannot use the serial number: at most 64 printable characters, no space around them',
    }
  }
  const certificateSerial = written === null ? null : readCertificateSerial(written)
  if (written !== null && certificateSerial === null) {
    return { id, fault: 'Cannot use the serial of the certificate: at most 20 octets in hex' }
  }
  if (!isDeviceId(id))
    return { id, fault: `Cannot use the device id "${id}": give it one with the column id` }
  return { id, serialNumber, certificateSerial }
}
